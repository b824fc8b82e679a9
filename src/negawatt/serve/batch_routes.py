"""``/v1/files`` and ``/v1/batches``: OpenAI's routes for work that can wait."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from negawatt.serve.admission import Caller, Refused
from negawatt.serve.batch import ENDPOINTS, Batch, read_items, window_s
from negawatt.serve.batches import Batches
from negawatt.serve.deferred import SLOT_S, Deferred
from negawatt.serve.files import File, Files
from negawatt.serve.grid import Grid
from negawatt.serve.limits import read_json
from negawatt.serve.shifted import shifted

MOST_UPLOAD_BYTES = 64 << 20
_METADATA = 16


class BatchRoutes:
    """Routes to mount in the server's application, inside of its check for a key.

    Those that are no coroutines are called in threads: they read files and the database.

    Args:
        files, batches, runner, grid: what they are about.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        files: Files,
        batches: Batches,
        runner: Deferred,
        grid: Grid,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files, self._batches, self._runner, self._grid = files, batches, runner, grid
        self._clock = clock

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files", self.list_files, methods=["GET"]),
            Route("/v1/files/{id}", self.file, methods=["GET"]),
            Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self.content, methods=["GET"]),
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.list_batches, methods=["GET"]),
            Route("/v1/batches/{id}", self.batch, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    # -- files ------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MOST_UPLOAD_BYTES:
            raise Refused(
                f"expected a file of at most {MOST_UPLOAD_BYTES >> 20} MiB, and its length", status=413
            )
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise Refused("expected multipart/form-data with the fields file and purpose", status=400)
        try:
            async with request.form(max_files=1, max_fields=8) as form:
                upload, purpose = form.get("file"), form.get("purpose")
                if upload is None or isinstance(upload, str):
                    raise Refused("expected a file", status=400, param="file")
                if purpose != "batch":
                    raise Refused("expected the purpose batch", status=400, param="purpose")
                content = await upload.read()
                name = re.sub(r"[^\w .()-]", "_", upload.filename or "upload.jsonl")[:255]
        except HTTPException as exc:
            raise Refused(f"the form cannot be read: {exc.detail}", status=400) from exc
        file = await asyncio.to_thread(self._files.add, _owner(request), name, "batch", content)
        return JSONResponse(file.to_json())

    def list_files(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        found = [f for f in self._files.all(_owner(request)) if purpose in (None, f.purpose)]
        return _page(request, [f.to_json() for f in found])

    def file(self, request: Request) -> Response:
        return JSONResponse(self._file(request).to_json())

    def delete(self, request: Request) -> Response:
        file = self._file(request)
        busy = [b for b in self._batches.all(file.owner) if b.input_file == file.id and b.ended_s is None]
        if busy:
            raise Refused(f"{busy[0].id} still reads this file; cancel it first", status=409)
        self._files.delete(file)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    def content(self, request: Request) -> Response:
        file = self._file(request)
        return FileResponse(self._files.path(file), media_type="application/jsonl", filename=file.filename)

    def _file(self, request: Request) -> File:
        identity = request.path_params["id"]
        found = self._files.find(_owner(request), identity)
        if found is None:
            raise Refused(f"there is no file {identity[:80]!r}", status=404, param="file_id")
        return found

    # -- batches ----------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        asked = read_json(await request.body())
        endpoint, window = asked.get("endpoint"), str(asked.get("completion_window"))
        if endpoint not in ENDPOINTS:
            raise Refused(f"expected an endpoint among {', '.join(ENDPOINTS)}", status=400, param="endpoint")
        window_s(window)
        metadata = _metadata(asked.get("metadata"))
        owner, identity = _owner(request), asked.get("input_file_id")
        file = None
        if isinstance(identity, str):
            file = await asyncio.to_thread(self._files.find, owner, identity)
        if file is None:
            raise Refused("expected the id of an uploaded file", status=400, param="input_file_id")
        items, errors = await asyncio.to_thread(read_items, self._files.path(file), endpoint)
        caller: Caller = request.state.caller
        batch = await asyncio.to_thread(
            self._batches.create, owner, caller.key_id, endpoint, file.id, window, metadata, items, errors
        )
        self._runner.wake()
        return JSONResponse(batch.to_json())

    def list_batches(self, request: Request) -> Response:
        return _page(request, [batch.to_json() for batch in self._batches.all(_owner(request))])

    async def batch(self, request: Request) -> Response:
        batch = await asyncio.to_thread(self._batch, request)
        slices = await asyncio.to_thread(self._batches.slices, batch)
        told = await asyncio.to_thread(shifted, batch, slices, self._grid, self._clock(), SLOT_S)
        return JSONResponse(batch.to_json() | {"energy": told.to_json()})

    async def cancel(self, request: Request) -> Response:
        batch = await asyncio.to_thread(lambda: self._batches.cancel(self._batch(request)))
        self._runner.wake()
        return JSONResponse(batch.to_json())

    def _batch(self, request: Request) -> Batch:
        identity = request.path_params["id"]
        found = self._batches.find(identity, _owner(request))
        if found is None:
            raise Refused(f"there is no batch {identity[:80]!r}", status=404, param="batch_id")
        return found


def _owner(request: Request) -> str:
    """Who sees it: the team's members alike, else the key alone."""
    caller: Caller = request.state.caller
    return f"team:{caller.team}" if caller.team else f"key:{caller.key_id}"


def _page(request: Request, found: list[dict[str, Any]]) -> Response:
    """OpenAI's list object, after the id that ``after`` names."""
    limit = request.query_params.get("limit", "20")
    most = int(limit) if limit.isdecimal() and len(limit) < 5 else 0
    if not 1 <= most <= 10_000:
        raise Refused("expected a limit from 1 to 10000", status=400, param="limit")
    after = request.query_params.get("after")
    ids = [entry["id"] for entry in found]
    if after is not None:
        if after not in ids:
            raise Refused(f"there is nothing with the id {after[:80]!r}", status=404, param="after")
        found = found[ids.index(after) + 1 :]
    page = found[:most]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(found) > most,
        }
    )


def _metadata(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    fine = (
        isinstance(value, dict)
        and len(value) <= _METADATA
        and all(len(k) <= 64 and isinstance(v, str) and len(v) <= 512 for k, v in value.items())
    )
    if not fine:
        raise Refused(
            f"expected metadata of at most {_METADATA} pairs of texts, 64 and 512 characters long",
            status=400,
            param="metadata",
        )
    return json.loads(json.dumps(value))  # type: ignore[no-any-return]
