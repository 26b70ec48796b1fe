"""Domains from files: exports, and messages and users of an application's own; a second import changes nothing."""

from datalayer.importing.domains import import_domain
from datalayer.importing.files import BadLine
from datalayer.importing.lines import conversation_id, message_of, sender_id
from datalayer.importing.media import import_media
from datalayer.importing.messages import import_messages
from datalayer.importing.reading import BadLines, ImportReport, Progress
from datalayer.importing.records import import_records
from datalayer.importing.users import import_users
from datalayer.importing.users_lines import user_id, user_of

__all__ = [
    "BadLine",
    "BadLines",
    "ImportReport",
    "Progress",
    "conversation_id",
    "import_domain",
    "import_media",
    "import_messages",
    "import_records",
    "import_users",
    "message_of",
    "sender_id",
    "user_id",
    "user_of",
]
