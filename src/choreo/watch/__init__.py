"""The page of `choreo watch`: what run folders hold, live while they train. Nothing in a run folder is written.

`watcher.py` looks at the folders, in a thread of its own. `figures.py` is what a run's row says, `curves.py` its
curves, `recipes.py` its settings beside those of others. `index.py` finds games among many; `games.py` is what it knows
of one, and what the page shows of it. `app.py` has the requests, and `page/` what the browser runs, as it is.
"""
