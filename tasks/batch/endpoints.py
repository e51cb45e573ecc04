"""The endpoints that there are, by their urls."""

from tasks.batch.chat_completions import ChatCompletions
from tasks.batch.completions import Completions
from tasks.batch.embeddings import Embeddings
from tasks.batch.endpoint import Endpoint
from tasks.batch.scores import Rerank, Score

ENDPOINTS: dict[str, Endpoint] = {
    one.url: one for one in (ChatCompletions(), Completions(), Embeddings(), Score(), Rerank())
}
