"""Who plays the game.

base        what an agent is (`Agent`), what it is shown (`State`), and the name of its noise
local       a model in this process, over token ids
constrained_review   the grammar that holds its reviews to their JSON
endpoint    a model behind an OpenAI-compatible server, over text
"""
