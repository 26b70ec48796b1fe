"""What callers pass in the place of a list of ids."""

from uuid import UUID

import pytest

from datalayer.errors import InvalidArgument
from datalayer.repositories.arguments import as_ids

ONE = UUID("0190b0a0-0000-7000-8000-000000000001")


@pytest.mark.parametrize("given", [ONE, str(ONE), ONE.bytes, None, 7], ids=lambda given: type(given).__name__)
def test_what_is_no_list_of_ids_is_refused_in_a_sentence(given: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        as_ids(given, "conversations")  # type: ignore[arg-type]
    assert str(refused.value).startswith("conversations must be a list of ids, not one ")
    assert "conversations=[id]" in str(refused.value)


def test_any_collection_of_ids_is_taken() -> None:
    assert as_ids([ONE], "ids") == as_ids({str(ONE)}, "ids") == as_ids(iter([ONE]), "ids") == (ONE,)
