"""Planning many rows takes little more memory than planning few."""

import re
import subprocess
import sys

import pytest

FEW, MANY = 20_000, 400_000
# Of these a row has 400 of tokens alone, a name of 32 and an ask.
MOST_BYTES_A_ROW = 400


def peak_bytes(rows: int) -> int:
    """The most that any stage took."""
    command = [sys.executable, "-m", "tests.tasks.plan_at_scale", "--rows", str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    stages = re.findall(r"^\| \w+ \| [\d.]+ \| [\d.]+ \| ([\d,]+) \|$", done.stdout, re.MULTILINE)
    assert len(stages) == 2, done.stdout
    return max(int(peak.replace(",", "")) for peak in stages) * 2**20


@pytest.mark.nightly
def test_rows_are_not_held_while_they_are_planned() -> None:
    """A row that was held would take more than its tokens; 10 million take 1,386 MiB, 750 of which are libraries."""
    assert (peak_bytes(MANY) - peak_bytes(FEW)) / (MANY - FEW) < MOST_BYTES_A_ROW
