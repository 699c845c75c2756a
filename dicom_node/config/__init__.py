"""Settings: built-in defaults, overlaid by a YAML file, overlaid by environment variables KNOWMVG__SECTION__KEY.

Everything is checked at once, here and nowhere else; every fault is reported with its path in the file. Relative paths
are relative to the folder of the configuration file (or the working folder without one).
"""

from dicom_node.config.console import CertificateSettings, ConsoleSettings, OidcSettings, Role, UserSettings
from dicom_node.config.loading import DEFAULT_FILE, ENVIRONMENT_PREFIX, MASK, find_file, load_settings, mask_url, masked
from dicom_node.config.section import Section
from dicom_node.config.sections import (
    AssemblySettings,
    AuditSettings,
    BrokerSettings,
    ClientTlsSettings,
    DatabaseSettings,
    DestinationSettings,
    EmailSettings,
    ModelSettings,
    NodeSettings,
    NotificationSettings,
    PeerSettings,
    PriorityRuleSettings,
    PrioritySettings,
    ReceiverSettings,
    ResultsSettings,
    RetentionSettings,
    ServerTlsSettings,
    Settings,
    StorageSettings,
    WebhookSettings,
)

__all__ = [
    "DEFAULT_FILE",
    "ENVIRONMENT_PREFIX",
    "MASK",
    "AssemblySettings",
    "AuditSettings",
    "BrokerSettings",
    "CertificateSettings",
    "ClientTlsSettings",
    "ConsoleSettings",
    "DatabaseSettings",
    "DestinationSettings",
    "EmailSettings",
    "ModelSettings",
    "NodeSettings",
    "NotificationSettings",
    "OidcSettings",
    "PeerSettings",
    "PriorityRuleSettings",
    "PrioritySettings",
    "ReceiverSettings",
    "ResultsSettings",
    "RetentionSettings",
    "Role",
    "Section",
    "ServerTlsSettings",
    "Settings",
    "StorageSettings",
    "UserSettings",
    "WebhookSettings",
    "find_file",
    "load_settings",
    "mask_url",
    "masked",
]
