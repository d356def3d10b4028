"""The pair behind the API that every client speaks. Read in this order:

dance      one request, played by the moves of `waltz/protocol.py`; what happens where a stage fails
agents     who speaks: the local engine (`local`) or an OpenAI-compatible server (`upstream`)
wire       OpenAI's shapes, read and written; pure
app        from HTTP to a dance and back (`keys`, `figures`, `guardrail`, `page/`)
run        what `choreo serve` does
"""
