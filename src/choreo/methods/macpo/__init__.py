"""MACPO (arXiv 2410.07672): weak teachers and a strong student that learn from each other's answers.

To read it, begin at the top; a file uses only files above it:

recipe            the settings
schedule, sizing  the phases of a run, and what they take
agents            the student and its teachers, each with a positive and a negative policy
split             the training prompts: with labels for the teachers, without for the student
generation_cache  the answers that were written
select            which answers are learnt from, as pure functions
answers           who writes what is learnt towards, and away from
phase_data        what a phase trains on
trainer           the phases, one after the other
measure           every agent after every round
report_sections   what the report shows
run               a run, round by round
method            what choreo asks of it
"""
