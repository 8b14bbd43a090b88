"""Reading a request body within its bound. It knows no schema."""

from starlette.requests import Request

from server.api.errors import ClientLeft
from server.api.json_guard import parse_json_object, shown
from server.errors import BadRequest


async def read_json_object(request: Request, max_bytes: int) -> dict[str, object]:
    """Raises BadRequest for another media type, a body over `max_bytes`, or what is not a JSON object."""
    _check_content_type(request.headers.get("content-type"))
    return parse_json_object(await _read(request, max_bytes))


async def _read(request: Request, max_bytes: int) -> bytes:
    """Stops at the limit whatever Content-Length claims; an honest one is believed before anything is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    has_more = True
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        has_more = message.get("more_body", False)
    return b"".join(chunks)


def _check_content_type(header: str | None) -> None:
    if header is None or header.partition(";")[0].strip().lower() == "application/json":
        return
    raise BadRequest(
        f"The content type is {shown(header)}; it must be application/json.", None, "unsupported_media_type", 415
    )


def _too_large(max_bytes: int) -> BadRequest:
    return BadRequest(f"The body is larger than the limit of {max_bytes} bytes.", None, "body_too_large", 413)
