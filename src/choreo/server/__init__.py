"""The pair behind the APIs that clients speak, OpenAI's first. Read in this order:

structured            tool calls and JSON answers: what is asked of an answer's form, and what of it a reviewer reads
session               one game for one caller, by the moves of `game.moves`; what happens where a stage fails
local, upstream       the agents of a session: the pair in this process, or models behind OpenAI-compatible servers
worker                the thread that decodes for all requests at once (`asking`: another server samples)
pair                  the pair of a run, loaded, and taken up anew from the newest checkpoint
apis                  what a caller asks, in any API, and what writes the reply (`api_error`)
reading               a body into such a request: what the APIs share
openai_requests       chat completions: what comes in, checked; replies and chunks written
openai_responses      what goes out, as types
responses_api         the same for OpenAI's Responses API (`responses_requests`)
messages_api          the same for Anthropic's Messages API (`messages_requests`)
incoming              of every request: its key, its body, its errors
release               a draft that leaves segment by segment, each once a review has not called it unsafe
state                 the state of a server: who may ask, what is in play (`keys`, `figures`)
chat                  from a request to its sessions and back (`events`)
guardrail             the same for another model's answer, as LiteLLM asks for it (`conversations`)
app                   the routes (`openapi`, and the page for a browser in `pages` and page/)
listening             the socket, and the end that a signal asks for
run                   what `choreo serve` does
bench                 what `choreo bench serve` measures
"""
