"""The kinds of the spec language: the one table. A new kind is one file in `mlspec.kinds` and one line here."""

from __future__ import annotations

from mlspec.kind import Kind
from mlspec.kinds import (
    dataset,
    feature_set,
    feature_view,
    function,
    model,
    monitoring_policy,
    pipeline,
    project,
    receiver,
    resource_pool,
    serving_graph,
    training_job,
)

KINDS: dict[str, Kind] = {
    "Project": Kind(
        project.ProjectSpec,
        check=project.check,
    ),
    "Dataset": Kind(
        dataset.DatasetSpec,
        references=dataset.references,
        check=dataset.check,
        expressions=dataset.expressions,
        lower=dataset.lower,
        code=dataset.code,
        columns=(("Snapshot", ".status.version"),),
    ),
    "FeatureSet": Kind(
        feature_set.FeatureSetSpec,
        references=feature_set.references,
        check=feature_set.check,
        expressions=feature_set.expressions,
        lower=feature_set.lower,
        columns=(("Dataset", ".spec.dataset"),),
    ),
    "FeatureView": Kind(
        feature_view.FeatureViewSpec,
        references=feature_view.references,
        check=feature_view.check,
        expressions=feature_view.expressions,
        lower=feature_view.lower,
        columns=(("Asks", ".spec.ask.dataset"),),
    ),
    "Function": Kind(
        function.FunctionSpec,
        check=function.check,
        code=function.code,
        columns=(("Code", ".spec.code"),),
    ),
    "TrainingJob": Kind(
        training_job.TrainingJobSpec,
        references=training_job.references,
        check=training_job.check,
        expressions=training_job.expressions,
        lower=training_job.lower,
        code=training_job.code,
        columns=(("Run", ".status.version"),),
    ),
    "Pipeline": Kind(
        pipeline.PipelineSpec,
        references=pipeline.references,
        check=pipeline.check,
        lower=pipeline.lower,
        columns=(("Schedule", ".spec.schedule"),),
    ),
    "Model": Kind(
        model.ModelSpec,
        references=model.references,
        check=model.check,
        lower=model.lower,
        columns=(
            ("Job", ".spec.job"),
            ("Run", ".status.version"),
        ),
    ),
    "ServingGraph": Kind(
        serving_graph.ServingGraphSpec,
        references=serving_graph.references,
        check=serving_graph.check,
        lower=serving_graph.lower,
        code=serving_graph.code,
        columns=(("Version", ".status.version"),),
    ),
    "MonitoringPolicy": Kind(
        monitoring_policy.MonitoringPolicySpec,
        references=monitoring_policy.references,
        check=monitoring_policy.check,
        expressions=monitoring_policy.expressions,
        lower=monitoring_policy.lower,
        columns=(
            ("Graph", ".spec.graph"),
            ("Window", ".spec.window"),
        ),
    ),
    "ResourcePool": Kind(
        resource_pool.ResourcePoolSpec,
        check=resource_pool.check,
        lower=resource_pool.lower,
        columns=(("Cohort", ".spec.cohort"),),
    ),
    "Receiver": Kind(
        receiver.ReceiverSpec,
        check=receiver.check,
        lower=receiver.lower,
    ),
}
