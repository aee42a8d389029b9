"""The parts of the report: what the files say (findings, digest), how it is drawn and worded (figures, page, wording)."""
