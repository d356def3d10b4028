"""What people say of answers: several systems, compared in pairs or labelled one by one, blind. Read in this order:

items     what is shown to raters, and what they may say of it
sources   the answers of a system, from a run or a file
make      a new arena: items from answers, attention items among them
store     the arena on disk, one SQLite file: items, raters, and the log of everything that was said
app       the page's requests (`page/` is what a browser runs); `serve` listens
results   what was said, as figures; `show` makes tables and pages of them
export    what was said, as files for training and for others
"""
