"""Papers' claims under governance, on the SWARM simulator (https://github.com/swarm-ai-safety/swarm).

Only `simulate` imports SWARM, and it runs in a process of its own; everything else here is plain data and pure
functions, so that it can be read and tested without it.
"""
