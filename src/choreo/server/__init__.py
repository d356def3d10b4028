"""The pair behind the API that every client speaks. Read in this order:

dance      one request, played by the moves of `waltz/protocol.py`; what happens where a stage fails
agents     who speaks: the local engine (`local`) or an OpenAI-compatible server (`upstream`)
wire       OpenAI's shapes (`shapes`), read and written; pure
guardrail  the same for another model's answer, as LiteLLM asks it
app        from HTTP to a dance and back (`keys`, `figures`, `openapi`, `page/`)
run        what `choreo serve` does
"""
