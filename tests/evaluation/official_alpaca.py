"""Run by test_official_alpaca.py in a process of its own: what the official alpaca_eval package makes of our files.

Importing the package sets up logging, reads .env files and changes scikit-learn's configuration, so it stays out of the
process of the tests. Prints one JSON object.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import packaging.version


class LongerWins:
    """In the place of a judge: the longer answer wins, equal lengths are a draw."""

    def __init__(self, annotators_config: str) -> None:
        self.name = annotators_config

    def annotate_head2head(self, outputs_1: Any, outputs_2: Any) -> list[dict[str, Any]]:
        pairs = outputs_1.merge(outputs_2, on="instruction", suffixes=("_1", "_2"))
        rows: list[dict[str, Any]] = pairs.to_dict(orient="records")
        for row in rows:
            difference = len(row["output_2"]) - len(row["output_1"])
            row["preference"] = 1.5 + (difference > 0) / 2 - (difference < 0) / 2
            row["annotator"] = self.name
        return rows


def main(folder: Path, c: float) -> None:
    # alpaca_eval 0.6.6 imports pkg_resources, which setuptools 82 took away, to compare versions of openai.
    stand_in = types.ModuleType("pkg_resources")
    stand_in.__dict__["parse_version"] = packaging.version.parse
    sys.modules["pkg_resources"] = stand_in
    import alpaca_eval
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    leaderboard, _ = alpaca_eval.evaluate(
        model_outputs=folder / "model_outputs.json",
        reference_outputs=folder / "reference_outputs.json",
        annotators_config="longer",
        precomputed_leaderboard=None,
        is_cache_leaderboard=False,
        is_return_instead_of_print=True,
        output_path=folder / "official",
        fn_metric="get_winrate",
        sort_by="win_rate",
        Annotator=LongerWins,
    )
    glm_winrate.hf_hub_download = lambda **_: folder / "df_gamed.csv"
    controlled = glm_winrate.get_length_controlled_winrate(
        pd.read_json(folder / "annotations.json"),
        save_weights_dir=None,
        glm_info={
            **glm_winrate.GLM_INFO["length_controlled_v1"],
            "kwargs": {"n_splits": 0, "C": c},
        },
    )
    evaluated = leaderboard.loc["ours"].to_dict()
    print(json.dumps({"evaluated": evaluated, "controlled": controlled}, default=float))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
