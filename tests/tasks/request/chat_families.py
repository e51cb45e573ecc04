"""Chat templates as four families of models have them, in our words, and tokenizers that know their special tokens."""

from functools import cache

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from engine.model.checkpoint import resolve_model
from engine.model.tokenizer import load_tokenizer

CHATML = """\
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
{{- 'You may call these functions:\n<tools>' }}
{%- for tool in tools %}{{- '\n' ~ (tool | tojson) }}{% endfor %}
{{- '\n</tools>\nWrite a call as <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{%- set content = message.content or '' %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>assistant\n' + content }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
{%- set given = call.function.arguments %}
{%- if given is string %}{{ given }}{% else %}{{ given | tojson }}{% endif %}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

LLAMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools is not none and tools %}{{- 'Environment: ipython\n' }}{% endif %}
{{- system + '<|eot_id|>' }}
{%- for message in messages %}
{%- if message.role == 'tool' or message.role == 'ipython' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
{%- if message.content is mapping %}{{ message.content | tojson }}{% else %}{{ message.content }}{% endif %}
{{- '<|eot_id|>' }}
{%- elif 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one tool call at a time') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
{%- if loop.first and tools %}
{{- 'Answer with a call of one of these functions:\n\n' }}
{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\n\n' }}{% endfor %}
{%- endif %}
{{- message.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}
{%- set first = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}
{%- else %}{% set first = '' %}{% set turns = messages %}{% endif %}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
{%- if message.content is string %}{{ message.content | trim }}
{%- else %}
{%- for item in message.content %}{% if item.type == 'text' %}{{ item.text | trim }}{% endif %}{% endfor %}
{%- endif %}
{{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{{- bos_token }}
{%- for message in turns %}
{%- if message['role'] == 'user' %}
{%- if tools and loop.last %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + (system if loop.last else '') + message['content'] + '[/INST]' }}
{%- elif message['role'] == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' + (message['content'] | string) + '}[/TOOL_RESULTS]' }}
{%- elif message.tool_calls is defined %}
{{- '[TOOL_CALLS][' }}
{%- for call in message.tool_calls %}
{{- {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson }}
{{- ', ' if not loop.last }}
{%- endfor %}
{{- ']' + eos_token }}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] + eos_token }}
{%- else %}{{ raise_exception('only user, assistant and tool') }}
{%- endif %}
{%- endfor %}"""


def _tokenizer(template: str, bos: str, eos: str, special: list[str], plain: list[str]) -> PreTrainedTokenizerFast:
    """The embedded model's, whose text tokens are those of GPT-2; `special` become special tokens, `plain` added ones.

    As Llama 3's and Mistral's do, it puts BOS before a plain text.
    """
    tokenizer = Tokenizer.from_str(load_tokenizer(resolve_model("embedded")).backend_tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in (bos, eos, *special)])
    tokenizer.add_tokens([AddedToken(one, special=False, normalized=False) for one in plain])
    number = tokenizer.token_to_id(bos)
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    made.chat_template = template
    return made


_FAMILIES = {
    "chatml": lambda: _tokenizer(
        CHATML, "<|endoftext|>", "<|im_end|>", ["<|im_start|>"], ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    ),
    "llama": lambda: _tokenizer(
        LLAMA, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], []
    ),
    "gemma": lambda: _tokenizer(GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], ["\n\n"]),
    "mistral": lambda: _tokenizer(
        MISTRAL,
        "<s>",
        "</s>",
        [
            *("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ],
        [],
    ),
}

FAMILIES = {name: cache(make) for name, make in _FAMILIES.items()}
