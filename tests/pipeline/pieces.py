"""Parts of streams, by dialect."""

START = {
    "openai": b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    "anthropic": b'event: message_start\ndata: {"type":"message_start","message":{"usage":'
    b'{"input_tokens":9,"output_tokens":1}}}\n\n',
}
CONTENT = {
    "openai": b'data: {"choices":[{"delta":{"content":"12345678"}}]}\n\n',
    "anthropic": b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":'
    b'{"type":"text_delta","text":"12345678"}}\n\n',
}
ERROR = {
    "openai": b'data: {"error":{"message":"sk-abc","type":"server_error"}}\n\n',
    "anthropic": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
    b'"message":"sk-abc"}}\n\n',
}
END = {
    "openai": b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    "anthropic": b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":'
    b'{"output_tokens":5}}\n\ndata: {"type":"message_stop"}\n\n',
}
