from __future__ import annotations

import pytest

from boresight.errors import RewardError
from boresight.report.metric_dictionary import entry_for
from boresight.rewards import Scorer


@pytest.mark.parametrize("name", ["reward", "loss", "rewards/f/mean", "completions/max_length", "eval_reward"])
def test_log_metric_refuses_names_of_others(make_group, name):
    def f(completions, log_metric):
        log_metric(name, 1000.0)
        return [0.0]

    scorer = Scorer(f, is_taken=lambda name: entry_for(name) is not None, max_failed_rate=1)
    with pytest.raises(RewardError, match=rf"log_metric\('{name}', …\): boresight logs a metric of this name itself"):
        scorer.score([make_group(["a"])])


def test_log_metric_takes_other_names_and_what_built_in_rewards_log(make_group):
    def f(completions, log_metric, log_extra):
        log_metric("hits", 1.0)
        log_metric("a\ud800b", 1.0)
        log_metric("rewards/f/unparsed", 0.5)
        log_extra("x", ["\ud800", None])
        return [0.0, 0.0]

    table = Scorer(f, is_taken=lambda name: entry_for(name) is not None).score([make_group(["a", "b"])])
    assert table.metrics == {"hits": [1.0], r"a\ud800b": [1.0], "rewards/f/unparsed": [0.5], "rewards/f/failed": [0.0]}
    assert table.extra == {"x": [r"\ud800", None]}

    def numbered(completions, log_metric):
        log_metric(5, 1.0)

    with pytest.raises(RewardError, match=r"log_metric\(5, …\): a metric's name is a text"):
        Scorer(numbered).score([make_group(["a"])])
