"""Chat templates as models have them, and their way into a folder that the runtime loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

# Phi-3-medium's, as published: it passes over a system message.
PHI3_MEDIUM = (
    "{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + message['content'] + "
    "'<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
)
RAISES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + PHI3_MEDIUM
)
# It takes a system message, without the blanks around it.
TRIMS = "{% if messages[0]['role'] == 'system' %}{{ '<|system|>' + messages[0]['content'] | trim }}{% endif %}" + (
    PHI3_MEDIUM
)


def put_template(folder: Path, template: str) -> None:
    """Give the folder of a release or a bundle another chat template; files that others share stay as they are."""
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    for name, text in (("tokenizer_config.json", json.dumps(config)), ("chat_template.jinja", template)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(text)


def with_template(bundle: Path, folder: Path, template: str) -> Path:
    """A new folder of a bundle's files, with another chat template."""
    shutil.copytree(bundle, folder, copy_function=os.link)
    put_template(folder, template)
    return folder
