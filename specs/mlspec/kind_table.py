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
    ),
    "Dataset": Kind(
        dataset.DatasetSpec,
        references=dataset.references,
        lower=dataset.lower,
        code=dataset.code,
    ),
    "FeatureSet": Kind(
        feature_set.FeatureSetSpec,
        references=feature_set.references,
        lower=feature_set.lower,
    ),
    "FeatureView": Kind(
        feature_view.FeatureViewSpec,
        references=feature_view.references,
        lower=feature_view.lower,
    ),
    "Function": Kind(
        function.FunctionSpec,
        code=function.code,
    ),
    "TrainingJob": Kind(
        training_job.TrainingJobSpec,
        references=training_job.references,
        lower=training_job.lower,
        code=training_job.code,
    ),
    "Pipeline": Kind(
        pipeline.PipelineSpec,
        references=pipeline.references,
        lower=pipeline.lower,
    ),
    "Model": Kind(
        model.ModelSpec,
        references=model.references,
        lower=model.lower,
    ),
    "ServingGraph": Kind(
        serving_graph.ServingGraphSpec,
        references=serving_graph.references,
        lower=serving_graph.lower,
        code=serving_graph.code,
    ),
    "MonitoringPolicy": Kind(
        monitoring_policy.MonitoringPolicySpec,
        references=monitoring_policy.references,
        lower=monitoring_policy.lower,
    ),
    "ResourcePool": Kind(
        resource_pool.ResourcePoolSpec,
        lower=resource_pool.lower,
    ),
    "Receiver": Kind(
        receiver.ReceiverSpec,
        lower=receiver.lower,
    ),
}
