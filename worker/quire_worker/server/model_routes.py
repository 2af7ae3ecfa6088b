"""GET /v1/models, POST /tokenize, /detokenize and /v1/messages/count_tokens: what needs the tokenizer but never the engine."""

import msgspec
from aiohttp import web

from quire_contract.anthropic.chat import decode_count_tokens
from quire_contract.anthropic.objects import MessageTokensCount
from quire_contract.openai.model_checks import check_token_ids
from quire_contract.openai.requests import DetokenizeRequest, TokenizeRequest
from quire_contract.openai.responses import DetokenizeResponse, ModelCard, ModelList, TokenizeResponse
from quire_worker.server.body import read_as, read_request
from quire_worker.server.served_model import ServedModel
from quire_worker.server.serving import Serving


class ModelRoutes:
    """The handlers. They answer while draining, too: nothing waits for them."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def models(self, request: web.Request) -> web.Response:
        del request
        model = self._serving.loaded.model
        return json_response(ModelList(data=[_card(model, name) for name in model.names]))

    async def model(self, request: web.Request) -> web.Response:
        """One of them, or 404."""
        model = self._serving.loaded.model
        return json_response(_card(model, model.check_name(request.match_info["name"])))

    async def tokenize(self, request: web.Request) -> web.Response:
        loaded = self._serving.loaded
        body = await read_request(TokenizeRequest, request, self._serving.limits)
        loaded.model.check_name(body.model)
        (ids,) = await loaded.tokeniser.prompts(body)
        strings = loaded.model.text.token_strings(ids) if body.return_token_strs else None
        answer = TokenizeResponse(
            count=len(ids), max_model_len=loaded.model.max_model_len, tokens=ids, token_strs=strings
        )
        return json_response(answer)

    async def count_tokens(self, request: web.Request) -> web.Response:
        """POST /v1/messages/count_tokens: renders and counts; the engine hears nothing of it."""
        loaded = self._serving.loaded
        body = await read_as(decode_count_tokens, request, self._serving.limits)
        loaded.model.check_name(body.model)
        (ids,) = await loaded.tokeniser.prompts(body)
        return json_response(MessageTokensCount(input_tokens=len(ids)))

    async def detokenize(self, request: web.Request) -> web.Response:
        loaded = self._serving.loaded
        body = await read_request(DetokenizeRequest, request, self._serving.limits)
        loaded.model.check_name(body.model)
        check_token_ids(body.tokens, loaded.model.vocab_size, "tokens")
        return json_response(DetokenizeResponse(prompt=await loaded.tokeniser.text(body.tokens)))


def _card(model: ServedModel, name: str) -> ModelCard:
    return ModelCard(id=name, created=model.created, max_model_len=model.max_model_len, root=model.names[0])


def json_response(body: object, status: int = 200) -> web.Response:
    """`body`, a msgspec struct or plain values, as JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
