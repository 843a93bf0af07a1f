from __future__ import annotations

import json

import pytest

from toolkit.catalog import Target
from toolkit.catalog.inventory import ansible_host, ansible_inventory
from toolkit.errors import ConfigError


def pi(name: str, **fields: object) -> Target:
    given = {"name": name, "host": f"{name}.local", "profile": "raspberry-pi-5-8gb"}
    return Target.model_validate(given | fields)


def test_groups_are_tags_and_profiles() -> None:
    inventory = ansible_inventory(
        [
            pi("pi1", tags=("lab", "first-floor")),
            pi("pi2", tags=("lab",), user="pi", port=2222, install_root="/opt/edgephi"),
            Target(name="bench", transport="local", profile="local"),
        ]
    )
    assert inventory == {
        "_meta": {
            "hostvars": {
                "pi1": {
                    "ansible_host": "pi1.local",
                    "edgephi_profile": "raspberry-pi-5-8gb",
                    "edgephi_install_root": "~/.edgephi",
                },
                "pi2": {
                    "ansible_host": "pi2.local",
                    "ansible_port": 2222,
                    "ansible_user": "pi",
                    "edgephi_profile": "raspberry-pi-5-8gb",
                    "edgephi_install_root": "/opt/edgephi",
                },
                "bench": {
                    "ansible_connection": "local",
                    "edgephi_profile": "local",
                    "edgephi_install_root": "~/.edgephi",
                },
            }
        },
        "all": {"children": ["first_floor", "lab", "profile_local", "profile_raspberry_pi_5_8gb"]},
        "first_floor": {"hosts": ["pi1"]},
        "lab": {"hosts": ["pi1", "pi2"]},
        "profile_local": {"hosts": ["bench"]},
        "profile_raspberry_pi_5_8gb": {"hosts": ["pi1", "pi2"]},
    }
    assert json.loads(json.dumps(inventory)) == inventory


def test_a_key_file_is_named_and_not_read() -> None:
    key = "/no/such/key"
    assert ansible_host(pi("pi1", identity_file=key))["ansible_ssh_private_key_file"] == key


def test_a_python_and_known_hosts_that_the_target_names() -> None:
    found = ansible_host(pi("pi1", python="/opt/py/bin/python3", known_hosts="/home/me/lab hosts"))
    assert found["edgephi_python"] == found["ansible_python_interpreter"] == "/opt/py/bin/python3"
    assert found["ansible_ssh_common_args"] == "-o UserKnownHostsFile='/home/me/lab hosts'"
    assert not {"edgephi_python", "ansible_ssh_common_args"} & set(ansible_host(pi("pi1")))


@pytest.mark.parametrize(
    ("tag", "group"), [("4gb", "_4gb"), ("all", "_all"), ("ungrouped", "_ungrouped"), ("a.b", "a_b")]
)
def test_what_ansible_takes_for_no_group_gets_a_mark(tag: str, group: str) -> None:
    assert ansible_inventory([pi("pi1", tags=(tag,))])[group] == {"hosts": ["pi1"]}


def test_two_tags_that_ansible_cannot_tell_apart() -> None:
    with pytest.raises(ConfigError) as error:
        ansible_inventory([pi("pi1", tags=("lab-1",)), pi("pi2", tags=("lab.1",))])
    assert error.value.message == "tag 'lab-1' and tag 'lab.1' are both group 'lab_1' in Ansible"
    assert error.value.hint == "letters, digits and _ are all that it has: rename one of them"


def test_nobody_is_an_inventory_too() -> None:
    assert ansible_inventory([]) == {"_meta": {"hostvars": {}}, "all": {"children": []}}
