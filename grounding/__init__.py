"""KnowMVG: knowledge-guided medical visual grounding. Images, text and boxes; knows nothing of DICOM, SQL or queues."""
