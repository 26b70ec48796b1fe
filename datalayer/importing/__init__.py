"""Messages from files: JSON lines in, deterministic ids, the routed write path; a second import changes nothing."""

from datalayer.importing.files import BadLine
from datalayer.importing.lines import conversation_id, message_of, sender_id
from datalayer.importing.messages import BadLines, ImportReport, Progress, import_messages

__all__ = [
    "BadLine",
    "BadLines",
    "ImportReport",
    "Progress",
    "conversation_id",
    "import_messages",
    "message_of",
    "sender_id",
]
