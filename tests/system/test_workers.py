"""Work spread over processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vatt.system.workers import Lost, results_in_order, tell_alive


def double(number: int) -> int:
    time.sleep(0.01 * (number % 3))  # later items are ready before earlier ones
    return 2 * number


def act(deed: str) -> str:
    """Stands for a decoder."""
    if deed == "hang":
        time.sleep(1_000)
    elif deed == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif deed == "leave":
        os._exit(3)
    elif deed == "slow":
        for _ in range(15):
            time.sleep(0.2)
            tell_alive()
    elif deed == "fail":
        raise ValueError("a mistake")
    return f"{deed} in {os.getpid()}"


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(num_workers):
    with results_in_order(double, iter(range(20)), num_workers=num_workers) as results:
        assert list(results) == [2 * number for number in range(20)]


def test_no_items_start_no_process():
    with results_in_order(double, [], num_workers=2) as results:
        assert list(results) == []


def test_what_hangs_or_crashes_is_lost_and_the_rest_is_not():
    deeds = ["good", "hang", "good", "crash", "leave", "good", "hang", "good"]
    with results_in_order(act, deeds, num_workers=2, limit_seconds=1.5) as results:
        found = list(results)
    assert [result for result in found if isinstance(result, Lost)] == [
        Lost("gave no answer within 1.5 s"),
        Lost("crashed its process (SIGSEGV)"),
        Lost("crashed its process (exit code 3)"),
        Lost("gave no answer within 1.5 s"),
    ]
    assert [isinstance(result, Lost) for result in found] == [deed != "good" for deed in deeds]


def test_what_is_slow_but_gives_signs_of_life_is_waited_for():
    with results_in_order(act, ["slow"], num_workers=1, limit_seconds=2) as results:
        assert next(results).startswith("slow in")


def test_preparing_does_not_count():
    with results_in_order(
        act, ["good"], num_workers=1, limit_seconds=0.3, prepare=lasting_preparation
    ) as results:
        assert next(results).startswith("good in")


def lasting_preparation() -> None:
    time.sleep(1.0)


def test_an_error_of_the_function_is_raised_here():
    with (
        results_in_order(act, ["good", "fail"], num_workers=1) as results,
        pytest.raises(ValueError, match="a mistake"),
    ):
        list(results)


def test_no_process_is_left_when_the_block_ends_early():
    with results_in_order(act, ["good", "hang", "hang"], num_workers=3) as results:
        process = int(next(results).split()[-1])
        assert Path(f"/proc/{process}").exists()
    assert not Path(f"/proc/{process}").exists()


def test_ctrl_c_ends_all_processes_without_a_word_from_them(tmp_path):
    program = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_workers import act
        from vatt.system.workers import results_in_order
        if __name__ == "__main__":
            try:
                with results_in_order(act, ["good", "hang", "hang"], num_workers=2) as results:
                    print(next(results), flush=True)
                    next(results)
            except KeyboardInterrupt:
                print("stopped")
    """)
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", Path(__file__).parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    worker = int(process.stdout.readline().split()[-1])
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("stopped\n", "")
    assert not Path(f"/proc/{worker}").exists()


class Growing:
    """Items, of which more come when results are looked at."""

    def __init__(self) -> None:
        self.waiting = [1]

    def __iter__(self) -> "Growing":
        return self

    def __next__(self) -> int:
        if not self.waiting:
            raise StopIteration
        return self.waiting.pop(0)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_items_that_come_from_results_are_taken(num_workers):
    items, found = Growing(), []
    with results_in_order(double, items, num_workers=num_workers) as results:
        for result in results:
            found.append(result)
            if result < 50:
                items.waiting.append(result)
    assert found == [2, 4, 8, 16, 32, 64]


def test_no_more_results_are_made_ahead_than_asked():
    given = []

    def items():
        for number in range(12):
            given.append(number)
            yield number

    with results_in_order(double, items(), num_workers=3, most_ahead=2) as results:
        for place, result in enumerate(results):
            assert result == 2 * place
            time.sleep(0.05)
            assert len(given) <= place + 1 + 2


def test_processes_go_on_while_a_result_is_looked_at():
    given = []

    def items():
        for number in range(3):
            given.append(number)
            yield number

    with results_in_order(double, items(), num_workers=1) as results:
        next(results)
        assert given == [0, 1]
