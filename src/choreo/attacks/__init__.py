"""The pair under attack: ASR and ORR against the number of tries.

base     what an attack is
kinds    the attacks, one file each
targets  who is attacked: a pair that is loaded here, or one behind a server
play     plays attacks on a target, chunk by chunk, each kept in a file
curves   figures from what was kept: pure functions
report   the page
run      from what the user asks for to the summary
"""
