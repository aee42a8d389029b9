"""People judge texts: which ones they are asked about (choose), the sheet they fill in (sheet), what they said (labels), and what it
tells of the filter (agreement) and teaches its calibration (pairs)."""
