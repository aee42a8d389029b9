"""Where a network looks: Grad-CAM for a match, for each word of a caption and for the answer to a question.

In: a network, pictures and texts. Out: for each word a weight for every patch of the picture, and a drawing of it.
Open first: words.py, which asks; maps.py computes and picture.py draws. Only what shows something asks here, so no stage runs again for a
change.
"""
