"""A small policy and its service."""

import pytest

from tests.vla_jax.policy.policies import tiny_policy
from vla_jax.serving.service import PolicyService


@pytest.fixture(scope="package")
def policy():
    return tiny_policy()


@pytest.fixture(scope="package")
def service(policy):
    service = PolicyService(policy, max_batch=4)
    service.warm_up()
    yield service
    service.close()
