"""`/v1/score` and `/v1/rerank`, as vLLM has them: how well texts answer a query."""

from collections.abc import Sequence

from tasks.batch.endpoint import Answered, Asked, BadRequestError, Endpoint, Json, RowAsk, usage
from tasks.batch.parameters import TEXT_PROMPT, check_names, given_of, required, whole_number

# A row's task has them too.
_OF_TASK = ("labels", "label_token_ids", "variants", "item_first", "apply_softmax")


class Score(Endpoint):
    """`text_1` is a query for all of `text_2`, or one for each of them."""

    url = "/v1/score"
    id_prefix = "score"

    def read(self, body: Json) -> Asked:
        check_names(body, ("model", "text_1", "text_2", *TEXT_PROMPT, *_OF_TASK))
        queries = _texts(required(body, "text_1"), "text_1")
        texts = _texts(required(body, "text_2"), "text_2")
        if len(queries) == 1:
            return Asked((_row(body, queries[0], texts),), {})
        if len(queries) != len(texts):
            said = f"text_1 has {len(queries)} texts and text_2 has {len(texts)}; give one query, or as many"
            raise BadRequestError("invalid_value", said, "text_2")
        return Asked(tuple(_row(body, query, [text]) for query, text in zip(queries, texts, strict=True)), {})

    def response(self, answered: Answered) -> Json:
        head = answered.head
        scores = [score for row in answered.rows for score in row["scores"]]
        return {
            "id": head.id,
            "object": "list",
            "created": head.created,
            "model": head.model,
            "data": [{"index": number, "object": "score", "score": score} for number, score in enumerate(scores)],
            "usage": usage(answered.rows, generates=False),
        }


class Rerank(Endpoint):
    """`documents` by how well they answer the `query`, the best first."""

    url = "/v1/rerank"
    id_prefix = "rerank"

    def read(self, body: Json) -> Asked:
        check_names(body, ("model", "query", "documents", "top_n", *TEXT_PROMPT, *_OF_TASK))
        query = required(body, "query")
        if not isinstance(query, str):
            raise BadRequestError("invalid_type", "query is a text", "query")
        given = required(body, "documents")
        documents = (
            [one.get("text") if isinstance(one, dict) else one for one in given] if isinstance(given, list) else []
        )
        texts = _texts(documents, "documents")
        return Asked((_row(body, query, texts),), {"documents": texts, "top_n": whole_number(body, "top_n", 0)})

    def response(self, answered: Answered) -> Json:
        head = answered.head
        (row,) = answered.rows
        scores = row["scores"]
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
        return {
            "id": head.id,
            "model": head.model,
            "usage": usage(answered.rows, generates=False),
            "results": [
                {
                    "index": index,
                    "document": {"text": answered.reply["documents"][index]},
                    "relevance_score": scores[index],
                }
                for index in ranked[: answered.reply["top_n"] or None]
            ],
        }


def _row(body: Json, query: str, texts: Sequence[str]) -> RowAsk:
    task = {"type": "score", "items": list(texts)} | given_of(body, _OF_TASK)
    return RowAsk({"prompt": query} | given_of(body, TEXT_PROMPT), task)


def _texts(value: object, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequestError("invalid_type", f"{name} is a text, or a list of texts", name)
    return texts
