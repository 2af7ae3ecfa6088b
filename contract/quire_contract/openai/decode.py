"""From a body's bytes to a checked request, or to a 400 that names the place and the reason.

The order: size, UTF-8, shape, JSON, fields that are not supported, types, ranges. Knows nothing of models and vocabularies.
"""

import re
from typing import TypeVar, get_args, get_type_hints

import msgspec

from quire_contract.openai import validation
from quire_contract.openai.errors import (
    CODE_INVALID_JSON,
    CODE_INVALID_TYPE,
    CODE_MISSING,
    ApiError,
    body_too_large,
    invalid,
)
from quire_contract.openai.limits import Limits
from quire_contract.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    RoutingFields,
    TokenizeRequest,
)
from quire_contract.openai.structure import check_structure
from quire_contract.openai.unsupported import refuse_unsupported

Body = ChatCompletionRequest | CompletionRequest | TokenizeRequest | DetokenizeRequest
BodyT = TypeVar("BodyT", ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
StructT = TypeVar("StructT", bound=msgspec.Struct)
DEFAULT_LIMITS = Limits()
_FIELDS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FLOAT = re.compile(rb"-?[0-9]+(?=[.eE])(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_AT_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING_FIELD = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")


def decode_request(kind: type[BodyT], body: bytes, limits: Limits = DEFAULT_LIMITS) -> BodyT:
    """The checked request of type `kind` in `body`. ApiError 400 (413 for a body over the limit) otherwise."""
    fields = decode_fields(body, limits)
    refuse_unsupported(fields, frozenset(kind.__struct_fields__))
    request = decode_struct(kind, body)
    _check(request, limits)
    return request


def decode_routing_fields(body: bytes, limits: Limits = DEFAULT_LIMITS) -> RoutingFields:
    """What a router needs of a chat or completion body; cheaper than the whole, and as strict about what it reads."""
    if len(body) > limits.max_body_bytes:
        raise body_too_large(limits.max_body_bytes)
    _check_utf8(body)
    check_structure(body)
    fields = decode_struct(RoutingFields, body)
    validation.check_routing(fields, limits)
    return fields


def _check(request: Body, limits: Limits) -> None:
    match request:
        case ChatCompletionRequest():
            validation.check_chat(request, limits)
        case CompletionRequest():
            validation.check_completion(request, limits)
        case TokenizeRequest():
            validation.check_tokenize(request, limits)
        case DetokenizeRequest():
            validation.check_detokenize(request, limits)


def _check_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8 (byte {error.start}).", code=CODE_INVALID_JSON) from None


def decode_fields(body: bytes, limits: Limits) -> dict[str, msgspec.Raw]:
    """The body's fields, undecoded. ApiError 400 if it is no JSON object, 413 if it is over the limit."""
    if len(body) > limits.max_body_bytes:
        raise body_too_large(limits.max_body_bytes)
    _check_utf8(body)
    check_structure(body)
    try:
        return _FIELDS_DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _syntax_error(body, error) from None


def decode_struct(kind: type[StructT], body: bytes) -> StructT:
    """The body as a `kind`, types checked, ranges not. ApiError 400 that names the place."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        if "got `float`" in str(error):
            return _decode_with_whole_floats(kind, body)
        raise _type_error(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _syntax_error(body, error) from None


def _decode_with_whole_floats(kind: type[StructT], body: bytes) -> StructT:
    """Again, taking 1.0 for 1 where an integer belongs: some languages' JSON writers know no integers."""
    try:
        fields = _FIELDS_DECODER.decode(body)
        for name, hint in get_type_hints(kind).items():
            if name in fields and int in get_args(hint):
                fields[name] = _whole(fields[name])
        return msgspec.json.decode(msgspec.json.encode(fields), type=kind)
    except msgspec.ValidationError as error:
        raise _type_error(str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:  # behind the number
        raise _syntax_error(body, error) from None


def _whole(raw: msgspec.Raw) -> msgspec.Raw:
    """A number like 1.0 as 1; any other JSON as it is."""
    text = bytes(raw)
    if not _FLOAT.fullmatch(text) or not float(text).is_integer():
        return raw
    return msgspec.Raw(b"%d" % float(text))


def _type_error(text: str) -> ApiError:
    """400 from msgspec's words, such as "Expected `str`, got `int` - at `$.messages[0].role`"."""
    found = _AT_PATH.match(text)
    assert found is not None, "the pattern matches any text"
    what, path = found["what"], (found["path"] or "").removeprefix("$").removeprefix(".")
    missing = _MISSING_FIELD.match(what)
    if missing is not None:
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return invalid(name, "is required", CODE_MISSING)
    if not path:
        return ApiError(400, f"The body must be a JSON object: {_lower_first(what)}.", code=CODE_INVALID_TYPE)
    return invalid(path, _lower_first(what), CODE_INVALID_TYPE)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _syntax_error(body: bytes, error: Exception) -> ApiError:
    if not body.strip():
        reason = "it is empty"
    elif isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif "truncated" in str(error):
        reason = "it ends too early or holds half of a surrogate pair"
    else:
        reason = str(error).removeprefix("JSON is malformed: ")
    return ApiError(400, f"The body is not valid JSON: {reason}.", code=CODE_INVALID_JSON)
