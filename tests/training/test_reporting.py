import logging

from nl_jax.training.reporting import Progress


def test_plain_lines_off_a_terminal(caplog):
    logging.getLogger("nl_jax").propagate = True
    with caplog.at_level(logging.INFO), Progress(100, 0, 10, 0.0) as progress:
        progress.update(50, 1.5, 2.0)
        progress.note(50, "held out: 1.9")
    assert "step 50/100" in caplog.text and "left" in caplog.text
    assert "step 50/100  held out: 1.9" in caplog.text
