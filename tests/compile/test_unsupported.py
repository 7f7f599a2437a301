"""What no target can do yet is said by the plan, at the resource that asks for it: a `+` is a promise."""

from __future__ import annotations

import pytest

from mlspec.compile import Compiled, choose_target, compile
from mlspec.project import build
from mlspec.workload import Facts

PROJECT = """
apiVersion: mlspec.dev/v1alpha1
kind: Project
metadata: {name: p}
spec:
  targets:
    local: {local: {}}
    cluster: {kubernetes: {namespace: p, image: "p@sha256:0000000000000000000000000000000000000000000000000000000000000000"}}
---
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: d}
spec: {source: {function: "load.py:rows"}, time: {event: at, delay: 0s}}
---
"""
RECEIVER = "{{apiVersion: mlspec.dev/v1alpha1, kind: Receiver, metadata: {{name: r}}, spec: {spec}}}\n"
JOB = """apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {{name: j}}
spec:
  function: "train.py:train"
  data: {{train: {{dataset: d, label: x}}, test: {{dataset: d, label: x}}}}
  {more}
"""
TARGETS = ("local", "cluster")


def compiled(text: str, target: str) -> Compiled:
    built = build({"p.yaml": PROJECT + text})
    assert built.project is not None, built.diagnostics
    chosen = choose_target(built.project.settings, target)
    assert not isinstance(chosen, str), chosen
    code = {".|load.py:rows": "a" * 64, ".|train.py:train": "b" * 64, ".|f.py:f": "c" * 64}
    return compile(built.project, chosen[1], Facts(code=code))


SECRET = "{secret: ...} cannot be read yet; use {env: NAME}"
RECEIVERS = {
    "url": ("{webhook: {url: {secret: alerts/url}}}", f"url: {SECRET}"),
    "header": (
        '{webhook: {url: "https://example.org/x", headers: {Authorization: {secret: alerts/token}}}}',
        f"headers.Authorization: {SECRET}",
    ),
    "url_and_header": (
        "{webhook: {url: {secret: a/b}, headers: {X-One: {env: ONE}, X-Two: {secret: a/c}}}}",
        f"url, headers.X-Two: {SECRET}",
    ),
    "slack": ("{slack: {url: {env: SLACK_URL}}}", "slack messages cannot be sent yet; use webhook"),
    "slack_secret": ("{slack: {url: {secret: a/b}}}", "slack messages cannot be sent yet; use webhook"),
    "email": ('{email: {to: [a@b], server: "mail:25"}}', "email messages cannot be sent yet; use webhook"),
    "apprise": ("{apprise: {url: {env: URL}}}", "apprise messages cannot be sent yet; use webhook"),
    "env": ("{webhook: {url: {env: ONCALL_URL}, headers: {Authorization: {env: _token2}}}}", ""),
    "plain": ('{webhook: {url: "http://127.0.0.1:9/x"}}', ""),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", RECEIVERS)
def test_a_receiver_says_what_cannot_be_sent(name: str, target: str) -> None:
    """Nobody finds out in the night of the first alert; also when no policy names it, and no target reads Secrets."""
    spec, words = RECEIVERS[name]
    assert compiled(RECEIVER.format(spec=spec), target).unsupported.get("Receiver/r", "") == words


JOBS = {
    "gpuShare": ("resources: {gpuShare: 0.5}", ["a share of a GPU (gpuShare) is not supported yet"]),
    "torch": ("engine: {torch: {nodes: 4}}", ["engine torch is not supported on this target yet"]),
    "ray": ("engine: {ray: {workers: 2}}", ["engine ray is not supported on this target yet"]),
    "both": (
        "engine: {mpi: {workers: 2}}\n  resources: {gpuShare: 0.25}",
        [
            "a share of a GPU (gpuShare) is not supported yet",
            "engine mpi is not supported on this target yet",
        ],
    ),
    "whole_gpus": ("resources: {gpu: 2}", []),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", JOBS)
def test_a_job_says_it_while_it_waits_for_its_data(name: str, target: str) -> None:
    """Its runs are not known before the dataset was read; the plan of the first day must say it all the same, once each."""
    more, sentences = JOBS[name]
    said = compiled(JOB.format(more=more), target).unsupported.get("TrainingJob/j", "")
    assert bool(said) is bool(sentences)
    assert all(said.count(sentence) == 1 for sentence in sentences)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("resource", "text", "words"),
    [
        ("Dataset/k", 'kind: Dataset\nmetadata: {name: k}\nspec: {source: {kafka: {topic: t, brokers: ["k:9"]}}}', "kafka cannot be read"),
        ("Dataset/k", 'kind: Dataset\nmetadata: {name: k}\nspec: {source: {sql: {connection: "${URL}", query: "SELECT 1"}}}', "sql cannot be read"),
        ("Model/m", "kind: Model\nmetadata: {name: m}\nspec: {path: ./m}", "a model from a path cannot be served yet"),
        ("Pipeline/l", "kind: Pipeline\nmetadata: {name: l}\nspec: {steps: {a: {dataset: d}}}", "pipelines cannot be run yet"),
        (
            "ServingGraph/g",
            'kind: ServingGraph\nmetadata: {name: g}\nspec: {steps: {a: {python: "f.py:f"}}, resources: {gpuShare: 0.5}}',
            "a share of a GPU (gpuShare) is not supported yet",
        ),
    ],
    ids=["kafka", "sql", "model_path", "pipeline", "gpu_share_of_a_graph"],
)  # fmt: skip
def test_other_kinds_say_it(resource: str, text: str, words: str, target: str) -> None:
    """Each is validated, because its place in the language is known, and runs nowhere."""
    assert words in compiled(f"apiVersion: mlspec.dev/v1alpha1\n{text}\n", target).unsupported[resource]
