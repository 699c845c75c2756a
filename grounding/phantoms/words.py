"""The vocabulary of generated reports: names, adjectives and places per finding, and sentence frames.

Data only; `phantom_report` composes them. In a frame, `{p}` is the phrase, `{a}` an article, `{be}` is or are.
"""

from __future__ import annotations

NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "consolidation": (
        ("consolidation", "consolidations"),
        ("airspace consolidation", "airspace consolidations"),
        ("focal consolidation", "focal consolidations"),
        ("dense opacification", "dense opacifications"),
        ("lobar consolidation", "lobar consolidations"),
        ("pneumonia", "pneumonia"),
        ("consolidative opacity", "consolidative opacities"),
    ),
    "opacity": (
        ("opacity", "opacities"),
        ("lung opacity", "lung opacities"),
        ("airspace opacity", "airspace opacities"),
        ("infiltrate", "infiltrates"),
        ("parenchymal opacity", "parenchymal opacities"),
        ("opacity suspicious for pneumonia", "opacities suspicious for pneumonia"),
        ("opacification", "opacifications"),
        ("airspace disease", "airspace disease"),
        ("pulmonary infiltrate", "pulmonary infiltrates"),
        ("shadowing", "shadowing"),
    ),
    "ground_glass": (
        ("ground-glass opacity", "ground-glass opacities"),
        ("ground glass opacity", "ground glass opacities"),
        ("hazy opacity", "hazy opacities"),
        ("haziness", "haziness"),
        ("ground-glass attenuation", "ground-glass attenuation"),
        ("ground-glass change", "ground-glass changes"),
        ("hazy opacification", "hazy opacifications"),
    ),
    "edema": (
        ("pulmonary edema", "pulmonary edema"),
        ("perihilar haze", "perihilar haze"),
        ("pulmonary vascular congestion", "pulmonary vascular congestion"),
        ("interstitial edema", "interstitial edema"),
        ("alveolar edema", "alveolar edema"),
        ("perihilar edema", "perihilar edema"),
    ),
    "nodule": (
        ("nodule", "nodules"),
        ("pulmonary nodule", "pulmonary nodules"),
        ("nodular opacity", "nodular opacities"),
        ("lung nodule", "lung nodules"),
        ("coin lesion", "coin lesions"),
        ("nodular density", "nodular densities"),
    ),
    "mass": (
        ("mass", "masses"),
        ("lung mass", "lung masses"),
        ("mass lesion", "mass lesions"),
        ("masslike opacity", "masslike opacities"),
        ("pulmonary mass", "pulmonary masses"),
        ("space-occupying lesion", "space-occupying lesions"),
    ),
    "atelectasis": (
        ("atelectasis", "atelectasis"),
        ("plate-like atelectasis", "plate-like atelectasis"),
        ("linear atelectasis", "linear atelectasis"),
        ("subsegmental atelectasis", "subsegmental atelectasis"),
        ("band of atelectasis", "bands of atelectasis"),
        ("discoid atelectasis", "discoid atelectasis"),
        ("atelectatic band", "atelectatic bands"),
    ),
    "pleural_effusion": (
        ("pleural effusion", "pleural effusions"),
        ("effusion", "effusions"),
        ("pleural fluid collection", "pleural fluid collections"),
        ("pleural fluid", "pleural fluid"),
    ),
    "pneumothorax": (("pneumothorax", "pneumothoraces"), ("ptx", "ptx")),
    "cardiomegaly": (
        ("cardiomegaly", "cardiomegaly"),
        ("enlarged heart", "enlarged hearts"),
        ("enlarged cardiac silhouette", "enlarged cardiac silhouettes"),
        ("enlargement of the cardiac silhouette", "enlargement of the cardiac silhouette"),
        ("cardiac enlargement", "cardiac enlargement"),
        ("increased cardiothoracic ratio", "increased cardiothoracic ratios"),
        ("enlarged cardiomediastinal silhouette", "enlarged cardiomediastinal silhouettes"),
    ),
    "endotracheal_tube": (
        ("endotracheal tube", "endotracheal tubes"),
        ("ET tube", "ET tubes"),
        ("ETT", "ETT"),
        ("tracheal tube", "tracheal tubes"),
    ),
    "central_line": (
        ("central venous catheter", "central venous catheters"),
        ("central venous line", "central venous lines"),
        ("central line", "central lines"),
        ("CVC", "CVC"),
        ("CVL", "CVL"),
    ),
    "nasogastric_tube": (
        ("nasogastric tube", "nasogastric tubes"),
        ("NG tube", "NG tubes"),
        ("enteric tube", "enteric tubes"),
        ("feeding tube", "feeding tubes"),
        ("orogastric tube", "orogastric tubes"),
    ),
    "pacemaker": (
        ("pacemaker", "pacemakers"),
        ("pacemaker generator", "pacemaker generators"),
        ("cardiac device", "cardiac devices"),
        ("pulse generator", "pulse generators"),
        ("pacing device", "pacing devices"),
    ),
}

MASS_NOUNS = frozenset(
    {"pneumonia", "airspace disease", "shadowing", "haziness", "ground-glass attenuation", "pulmonary edema",
     "perihilar haze", "pulmonary vascular congestion", "interstitial edema", "alveolar edema", "perihilar edema",
     "atelectasis", "plate-like atelectasis", "linear atelectasis", "subsegmental atelectasis", "discoid atelectasis",
     "pleural fluid", "cardiomegaly", "enlargement of the cardiac silhouette", "cardiac enlargement",
     "dense opacification", "hazy opacification", "opacification", "consolidation", "airspace consolidation"}
)  # fmt: skip
"""Nouns that take no article."""

LOOKS: dict[str, tuple[str, ...]] = {
    "consolidation": ("dense", "confluent", "patchy", "ill-defined", "homogeneous", "extensive"),
    "opacity": ("patchy", "ill-defined", "heterogeneous", "focal", "vague", "confluent", "irregular", "multifocal"),
    "ground_glass": ("faint", "subtle", "diffuse", "patchy", "ill-defined", "vague", "peripheral"),
    "edema": ("diffuse", "symmetric"),
    "nodule": ("rounded", "well-defined", "solitary", "well-circumscribed", "round", "discrete", "non-calcified"),
    "mass": ("lobulated", "rounded", "well-defined", "spiculated", "irregular"),
    "atelectasis": ("mild", "minor", "minimal", "streaky"),
    "pleural_effusion": ("layering", "free-flowing", "simple"),
    "pneumothorax": ("simple",),
}
SIZED = frozenset({"pleural_effusion", "pneumothorax", "consolidation", "opacity", "edema", "cardiomegaly"})
SIZES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "space": (
        ("small", "tiny", "trace", "minimal"),
        ("moderate", "moderate-sized", "medium-sized"),
        ("large", "sizable"),
    ),
    "degree": (("mild", "slight"), ("moderate",), ("marked", "severe")),
    "area": (("small", "limited"), ("moderate",), ("large", "extensive")),
}

ASSERT = (
    "There {be} {a}{p}.",
    "There {be} {a}{p}.",
    "There {be} now {a}{p}.",
    "{p}.",
    "{p}.",
    "{p} {be} seen.",
    "{p} {be} noted.",
    "{p} {be} present.",
    "{p} {be} identified.",
    "{p} {be} again seen.",
    "{p}, unchanged.",
    "{p}, new since the previous examination.",
    "{p}, slightly increased from before.",
    "Again noted {be} {a}{p}.",
    "The study demonstrates {a}{p}.",
    "The film shows {a}{p}.",
    "Interval development of {a}{p}.",
    "Persistent {p}.",
    "New {p}.",
    "Stable {p}.",
    "Findings in keeping with {a}{p}.",
    "Appearances are consistent with {a}{p}.",
    "Note is made of {a}{p}.",
    "We see {a}{p}.",
    "Evidence of {p}.",
    "Redemonstration of {a}{p}.",
    "Impression of {a}{p} on this projection.",
)
HEDGE = (
    "Possible {p}.",
    "Probable {p}.",
    "Likely {p}.",
    "Suspected {p}.",
    "Findings suspicious for {a}{p}.",
    "{p} cannot be excluded.",
    "{p} {be} suspected.",
    "There may be {a}{p}.",
    "Questionable {p}.",
    "Cannot exclude {a}{p}.",
    "Appearances raise the possibility of {a}{p}.",
)
PAIR = (
    "There {be} {a}{p} and {b}{q}.",
    "{p} and {b}{q} are noted.",
    "{p} with {b}{q}.",
    "{p}, together with {b}{q}.",
    "{p}; {q}.",
    "In addition to {a}{p}, there is {b}{q}.",
)
DEVICE = (
    "{p} in situ.",
    "{p} in place.",
    "{p} {be} in satisfactory position.",
    "{p} {be} unchanged in position.",
    "{p} noted.",
    "There {be} {a}{p}.",
    "{p} projects in the expected position.",
    "The patient has {a}{p}.",
    "Interval placement of {a}{p}.",
)
DENY_ONE = (
    "No {p}.",
    "No {p} {be} seen.",
    "There is no {p}.",
    "No evidence of {p}.",
    "Negative for {p}.",
    "Without {p}.",
    "No radiographic evidence of {p}.",
    "{p} {be} not seen.",
    "There is no sign of {p}.",
    "Previously noted {p} has resolved.",
    "Interval resolution of the {p}.",
    "No definite {p}.",
    "No {p} is identified on this view.",
)
DENY_DEVICE = ("No {p}.", "{p} has been removed.", "Interval removal of the {p}.", "There is no {p}.")
DENY_TWO = (
    "No {p} or {q}.",
    "There is no {p} or {q}.",
    "No evidence of {p} or {q}.",
    "Neither {p} nor {q} is seen.",
    "There is no {p} and no {q}.",
    "Negative for {p} and {q}.",
)
DENY_THREE = (
    "No {p}, {q} or {r}.",
    "No {p}, {q}, or {r} is seen.",
    "There is no {p}, {q}, or {r}.",
    "No evidence of {p}, {q}, or {r}.",
)
DENIED: dict[str, tuple[str, ...]] = {
    "pneumothorax": ("pneumothorax", "pneumothorax", "{side} pneumothorax", "ptx"),
    "pleural_effusion": (
        "pleural effusion",
        "effusion",
        "pleural effusion",
        "{side} pleural effusion",
        "pleural fluid",
    ),
    "consolidation": ("focal consolidation", "consolidation", "lobar consolidation", "focal airspace consolidation"),
    "opacity": ("airspace opacity", "focal opacity", "infiltrate", "airspace disease"),
    "edema": ("pulmonary edema", "vascular congestion", "interstitial edema"),
    "nodule": ("nodule", "suspicious nodule", "pulmonary nodule"),
    "mass": ("mass", "lung mass", "suspicious mass"),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement"),
    "atelectasis": ("atelectasis", "lobar collapse"),
    "ground_glass": ("ground-glass opacity",),
    "endotracheal_tube": ("endotracheal tube",),
    "central_line": ("central venous catheter",),
}
NORMAL_HEART = (
    "[heart size is normal].",
    "The [heart size is normal].",
    "The [cardiac silhouette is normal].",
    "[heart size within normal limits].",
    "[cardiac silhouette is not enlarged].",
    "The [heart is normal in size].",
    "[normal heart size].",
)
CLEAR_LUNGS = (
    "The [lungs are clear].",
    "[lungs are clear].",
    "[clear lungs].",
    "Both [lungs are clear].",
    "[lung fields are clear].",
)
NEUTRAL = (
    "Mediastinal contours are unremarkable.",
    "The hila are normal in appearance.",
    "Bony structures are intact.",
    "Degenerative changes of the thoracic spine.",
    "The visualized upper abdomen is unremarkable.",
    "Comparison is made to the prior radiograph.",
    "The trachea is midline.",
    "Lung volumes are low.",
    "The patient is slightly rotated.",
    "Inspiratory effort is adequate.",
    "Soft tissues are unremarkable.",
    "Osseous structures are grossly unremarkable.",
    "The aorta is tortuous.",
    "Exposure is suboptimal.",
)
ADVICE = (
    "Clinical correlation is recommended.",
    "Follow-up radiograph in 6 weeks is suggested.",
    "CT may be helpful for further evaluation.",
    "Recommend comparison with previous films.",
    "Results were discussed with the referring team.",
    "Attention on follow-up.",
)
INDICATIONS = (
    "Cough and fever, rule out {x}.",
    "Shortness of breath.",
    "Known {x}, follow-up.",
    "Chest pain. Evaluate for {x}.",
    "{age}-year-old {sex} with dyspnea. Question of {x}.",
    "Line placement, assess for {x}.",
    "Preoperative evaluation.",
    "History of {x}.",
)
INDICATION_WORDS = (
    "pneumonia", "pneumothorax", "pleural effusion", "pulmonary edema", "lung mass", "consolidation", "cardiomegaly",
    "left lower lobe pneumonia", "right-sided pneumothorax", "nodule",
)  # fmt: skip
TECHNIQUES = (
    "Single frontal view of the chest.",
    "Portable AP radiograph.",
    "PA view of the chest.",
    "Chest radiograph, one view.",
    "Semi-erect AP portable chest film.",
)
COMPARISONS = (
    "None.",
    "Chest radiograph from the previous day.",
    "Prior study showed {x}.",
    "No prior studies are available.",
    "Radiograph of last week, with {x}.",
)
ALL_CLEAR = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No acute disease.",
    "Unremarkable examination of the chest.",
)
