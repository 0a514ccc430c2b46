"""The resource config: what is read of it, and how it is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.errors import FileRefused
from vdpa_agent.files.resource_config import decode_resource_config
from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.pools import Functions, Pool, ResourceConfig, Selector

OPERATORS = {
    "resourceList": [
        {
            "resourceName": "intel_sriov_dpdk",
            "resourcePrefix": "intel.com",
            "deviceType": "netDevice",
            "excludeTopology": True,
            "selectors": [
                {
                    "vendors": ["8086"],
                    "devices": ["154C", "1889"],
                    "drivers": ["vfio-pci"],
                    "pfNames": ["enp0s0f0#0-3,7", "enp2s2f1"],
                    "isRdma": False,
                    "needVhostNet": False,
                    "linkTypes": [],
                    "vdpaType": "",
                },
                {"rootDevices": ["0000:86:00.0#9"], "pciAddresses": ["86:01.1"]},
            ],
            "additionalInfo": {"*": {"token": "x"}, "86:01.1": {"token": "y"}},
        },
        {"resourceName": "mlnx.vdpa-2", "selectors": {"vendors": ["15b3"]}},
    ]
}
"""In the form that operators have for the SR-IOV network device plugin."""


def decode(whole: Any, *, simulate: bool = False) -> ResourceConfig:
    return decode_resource_config(json.dumps(whole).encode(), simulate=simulate)


def one(**entry: Any) -> Any:
    return {"resourceList": [{"resourceName": "net", **entry}]}


def test_a_config_of_the_sriov_plugin_is_read_as_it_is() -> None:
    first, second = decode(OPERATORS).pools
    assert first == Pool(
        "intel.com/intel_sriov_dpdk",
        (
            Selector(
                vendors=("8086",),
                devices=("154c", "1889"),
                drivers=("vfio-pci",),
                pf_names=(Functions("enp0s0f0", ((0, 3), (7, 7))), Functions("enp2s2f1")),
            ),
            Selector(
                pci_addresses=("0000:86:01.1",),  # type: ignore[arg-type]
                root_devices=(Functions("0000:86:00.0", ((9, 9),)),),
            ),
        ),
        exclude_topology=True,
        info={"*": {"token": "x"}, "0000:86:01.1": {"token": "y"}},
    )
    assert second == Pool("vdpa.io/mlnx.vdpa-2", (Selector(vendors=("15b3",)),))


def test_the_text_is_kept_as_it_is() -> None:
    content = b'\n{"resourceList": []} '
    assert decode_resource_config(content, simulate=False) == ResourceConfig((), content)


def test_without_selectors_every_vf_is_meant_but_not_beside_simulated_ones() -> None:
    assert decode(one()).pools == (Pool("vdpa.io/net", (Selector(),)),)
    assert decode(one(simulated=2), simulate=True).pools == (Pool("vdpa.io/net", (), simulated=2),)
    both = decode(one(simulated=2, selectors={}), simulate=True)
    assert both.pools == (Pool("vdpa.io/net", (Selector(),), simulated=2),)


@pytest.mark.parametrize("mode", list(VhostMode))
def test_a_pool_chooses_its_vhost_mode(mode: VhostMode) -> None:
    assert decode(one(vhostMode=mode)).pools[0].vhost_mode is mode


@pytest.mark.parametrize(
    ("whole", "why"),
    [
        ([], 'it has no array resourceList; write {"resourceList": [...]}'),
        ({"resourceList": {}}, 'it has no array resourceList; write {"resourceList": [...]}'),
        ({"resourceList": [], "x": 1}, "'x' is not known here: known are resourceList"),
        ({"resourceList": [3]}, "entry 1: it is not an object with resourceName and selectors"),
        (
            {"resourceList": [{}]},
            "entry 1: resourceName is absent: letters, digits, - _ and . inside",
        ),
        (one(resourceName="a/b"), "entry 1: resourceName 'a/b' is none: letters"),
        (one(resourceName="x" * 64), "entry 1: resourceName 'xxxx"),
        (one(resourcePrefix="Intel.com"), "entry 1: resourcePrefix 'Intel.com' is none: a domain in lower case"),
        (one(selector={}), "entry 1: vdpa.io/net: 'selector' is not known here: known are additionalInfo, deviceType"),
        (
            one(deviceType="accelerator"),
            "entry 1: vdpa.io/net: deviceType 'accelerator' is not served here",
        ),
        (one(selectors=[{}, 3]), "entry 1: vdpa.io/net: selector 2: it is not an object of selectors"),
        (one(selectors={"vendors": "8086"}), "vdpa.io/net: selector 1: vendors '8086' is not an array; write ['8086']"),
        (one(selectors={"vendors": ["8086", 8086]}), "selector 1: vendors value 2: 8086 is not a text in quotes"),
        (one(selectors={"vendors": ["0x8086"]}), "vendors value 1: '0x8086' is not an id of four hexadecimal digits"),
        (one(selectors={"drivers": ["a b"]}), "drivers value 1: 'a b' is not the name of a driver, such as vfio-pci"),
        (one(selectors={"drivers": ["../x"]}), "drivers value 1: '../x' is not the name of a driver, such as vfio-pci"),
        (one(selectors={"pciAddresses": ["82:0.0"]}), "pciAddresses value 1: '82:0.0' is not a PCI address such as"),
        (one(selectors={"pfNames": ["ens1f0#0-"]}), "'ens1f0#0-': '0-' is not a number or a range of VFs, such as 0-3"),
        (one(selectors={"pfNames": ["ens1f0#"]}), "'ens1f0#': '' is not a number or a range of VFs, such as 0-3"),
        (one(selectors={"pfNames": ["ens1f0#3-1"]}), "'ens1f0#3-1': '3-1' is not a number or a range"),
        (one(selectors={"pfNames": ["ens1/f0"]}), "'ens1/f0' is not the name of a network interface, such as ens1f0"),
        (one(selectors={"rootDevices": ["ens1f0"]}), "rootDevices value 1: 'ens1f0' is not a PCI address such as"),
        (one(selectors={"isRdma": True}), "selector 1: 'isRdma' is not known here: RDMA devices are not handed out"),
        (one(selectors={"vdpaType": "vhost"}), "'vdpaType' is not known here: it is about the kernel's vDPA devices"),
        (one(selectors={"linkTypes": ["ether"]}), "'linkTypes' is not known here: a VF on vfio-pci has no link"),
        (one(selectors={"pfName": ["ens1f0"]}), "'pfName' is not known here: known are devices, drivers, pciAddresses"),
        (one(excludeTopology="yes"), "excludeTopology 'yes' is neither true nor false"),
        (one(vhostMode="both"), "vhostMode 'both' is not known, give one of server, client"),
        (one(simulated=2), "simulated 2 asks for software devices; start the agent with --simulate, or drop it"),
        (one(additionalInfo={"*": {"a": 1}}), "additionalInfo is not an object of objects of texts"),
        (one(additionalInfo=[1]), "additionalInfo is not an object of objects of texts"),
        (one(additionalInfo={"eth0": {}}), "'eth0' is not a PCI address"),
        (one(additionalInfo={"*": {"a": "x" * 40_000}}), "additionalInfo has more than 32768 bytes, shorten it"),
        ({"resourceList": [{"resourceName": "a"}] * 2}, "entry 2: vdpa.io/a occurs twice; give each entry its own"),
        ({"resourceList": [{}] * 257}, "resourceList has 257 entries, at most 256 are read"),
        (one(selectors=[{}] * 257), "it has 257 selectors, at most 256 are read"),
        (one(selectors={"vendors": ["8086"] * 4097}), "vendors has 4097 values, at most 4096 are read"),
    ],
)
def test_a_refusal_names_the_entry_and_the_value(whole: Any, why: str) -> None:
    with pytest.raises(FileRefused) as refusal:
        decode(whole)
    assert why in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("simulated", [-1, 257, True, "2", 1.5])
def test_a_wrong_number_of_simulated_vfs_is_refused(simulated: object) -> None:
    with pytest.raises(FileRefused, match=r"is not a number from 0 to 256|asks for software"):
        decode(one(simulated=simulated), simulate=simulated is not True)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "line 1 column 2: not JSON"),
        (b"\xff", "byte 0xff at offset 0 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"resourceList": ' + b"1" * 5_000 + b"}", "a number is too long"),
        (b'{"resourceList": [], "resourceList": []}', "the key 'resourceList' occurs twice in one object, keep one"),
        (b" " * (1024 * 1024 + 1), "it is larger than 1048576 bytes"),
    ],
)
def test_what_is_not_json_is_refused_with_the_place(content: bytes, why: str) -> None:
    with pytest.raises(FileRefused, match=why):
        decode_resource_config(content, simulate=True)


KEYS = (
    "resourceName resourcePrefix selectors vendors drivers pfNames rootDevices pciAddresses additionalInfo isRdma"
    " vhostMode simulated excludeTopology deviceType x"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5),
    max_leaves=20,
)


@given(st.binary() | JSON.map(lambda whole: json.dumps({"resourceList": [whole]}).encode()))
def test_whatever_it_is_it_is_read_or_refused(content: bytes) -> None:
    reason = ""
    try:
        decode_resource_config(content, simulate=True)
    except FileRefused as refusal:
        reason = str(refusal)
    assert reason.isprintable()
