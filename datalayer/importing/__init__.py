"""Messages and users from files: JSON lines in, deterministic ids, the routed write path; a second import changes nothing."""

from datalayer.importing.files import BadLine
from datalayer.importing.lines import conversation_id, message_of, sender_id
from datalayer.importing.messages import import_messages
from datalayer.importing.reading import BadLines, ImportReport, Progress
from datalayer.importing.records import import_domain, import_records
from datalayer.importing.users import import_users
from datalayer.importing.users_lines import user_id, user_of

__all__ = [
    "BadLine",
    "BadLines",
    "ImportReport",
    "Progress",
    "conversation_id",
    "import_domain",
    "import_messages",
    "import_records",
    "import_users",
    "message_of",
    "sender_id",
    "user_id",
    "user_of",
]
