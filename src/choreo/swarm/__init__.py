"""Papers' claims under governance, on the SWARM simulator (https://github.com/swarm-ai-safety/swarm).

Only `simulate` and `trained_agents` import SWARM, and they run in a process of their own. Everything else here is plain
data and pure functions, so that it can be read and tested without SWARM.
"""
