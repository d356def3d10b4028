"""Papers' claims under governance, on the SWARM simulator (https://github.com/swarm-ai-safety/swarm).

Only `simulate`, `trained_agents` and `scenario.swarm_config` import SWARM, in a process of their own. Everything
else here is plain data and pure functions, so that it can be read and tested without SWARM.
"""
