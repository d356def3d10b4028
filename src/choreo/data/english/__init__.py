"""The prompts that ship: harmful, benign and general ones in English, in a training and a held-out file.

`DATA_CARD.md` says where they come from. `python -m choreo.data.english FOLDER` makes the files again from published
data; `own/` has the texts that were written for choreo.
"""
