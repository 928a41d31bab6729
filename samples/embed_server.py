"""A web service of one's own with a model inside: python samples/embed_server.py BUNDLE [PORT]."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from lfm2_deploy import Engine, TextDelta
from lfm2_deploy.server.app import make_app
from lfm2_deploy.server.settings import Settings

if len(sys.argv) < 2:
    sys.exit(__doc__)
bundle, port = sys.argv[1], int((sys.argv[2:] or ["8000"])[0])
engine = Engine.load(bundle)
app = FastAPI()
app.mount("/llm", make_app(engine, Settings(names=(Path(bundle).resolve().name,))))
PATHS = {"text": "/haiku?about=rain", "chat page": "/llm/", "OpenAI's API": "/llm/v1"}
app.add_api_route("/", lambda: PATHS)


@app.get("/haiku")
async def write_haiku(about: str) -> StreamingResponse:
    messages = [{"role": "user", "content": f"Write a haiku about {about}."}]

    async def stream() -> AsyncIterator[str]:
        # Whoever leaves cancels the answer.
        async with await engine.astart(messages, max_new_tokens=60, temperature=0.8) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    yield event.text

    return StreamingResponse(stream(), media_type="text/plain")


uvicorn.run(app, host="127.0.0.1", port=port)
engine.close()
