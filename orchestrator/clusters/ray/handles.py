"""Ray's handles, under the names that other rooms use in their types. The type checker cannot look into Ray."""

from ray import ObjectRef as ObjectRef
from ray.actor import ActorClass as ActorClass
from ray.actor import ActorHandle as ActorHandle
from ray.util.placement_group import PlacementGroup as PlacementGroup
