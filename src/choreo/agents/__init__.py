"""Who plays the game.

base        what an agent is (`Agent`), what it is shown (`State`), and the name of its noise
local       a model in this process, over token ids
endpoint    a model behind an OpenAI-compatible server, over text
"""
