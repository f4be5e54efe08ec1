import pytest
from lightrft_core.errors import UserError
from lightrft_core.nodes import Origin, from_plain
from lightrft_core.overrides import Override, apply, parse_set


def tree(data):
    return from_plain(data, Origin("run.yaml"))


def after(data, *texts):
    node = tree(data)
    for text in texts:
        apply(node, parse_set(text))
    return node.plain()


def error_of(data, text):
    with pytest.raises(UserError) as caught:
        after(data, text)
    return str(caught.value)


def test_a_set_is_a_key_a_yaml_value_and_its_source():
    assert parse_set("loss.clip_high=0.28") == Override("loss.clip_high", 0.28, "--set")
    assert parse_set("optim.betas=[0.9, 0.95]").value == [0.9, 0.95]
    assert parse_set("optim.lr=1e-6").value == 1e-6
    assert parse_set("task.system_prompt=a=b").value == "a=b"
    assert parse_set("run.steps=null").value is None


@pytest.mark.parametrize("text", ["loss.clip_high", "=3", ""])
def test_what_is_not_key_value_is_refused(text):
    with pytest.raises(UserError, match=r"is not key=value\. For example --set optim\.lr=1e-6\."):
        parse_set(text)


@pytest.mark.parametrize("key", ["a..b", ".a", "a.", "a[", "a[]", "a]b", "[x].a"])
def test_a_malformed_key_is_refused(key):
    with pytest.raises(UserError, match=r"Write section\.key or section\[name\]\.key"):
        parse_set(f"{key}=1")


def test_keys_are_set_and_made():
    assert after({}, "loss.clip_high=0.3") == {"loss": {"clip_high": 0.3}}
    assert after({"loss": {"use": "clip"}}, "loss.clip_high=0.3") == {"loss": {"use": "clip", "clip_high": 0.3}}
    assert after({"optim": None}, "optim.lr=1") == {"optim": {"lr": 1}}


def test_hyphens_in_keys_are_underscores():
    assert after({}, "optim.batch-size=8") == {"optim": {"batch_size": 8}}


def test_an_item_is_found_by_use():
    data = {"filters": [{"use": "length"}, {"use": "spread", "metric": "a"}]}
    assert after(data, "filters[spread].metric=b")["filters"] == [{"use": "length"}, {"use": "spread", "metric": "b"}]


def test_a_reward_is_found_by_its_name_before_its_use():
    data = {"rewards": [{"use": "model"}, {"use": "other", "name": "model"}]}
    assert after(data, "rewards[model].weight=2")["rewards"][1] == {"use": "other", "name": "model", "weight": 2}


def test_an_item_written_as_a_name_alone_is_found():
    assert after({"filters": ["spread"]}, "filters[spread].metric=b")["filters"] == [{"use": "spread", "metric": "b"}]


def test_an_unknown_item_is_added():
    assert after({}, "filters[spread].metric=b") == {"filters": [{"use": "spread", "metric": "b"}]}
    assert after({"filters": [{"use": "x"}]}, "filters[spread]={}")["filters"] == [{"use": "x"}, {"use": "spread"}]


def test_an_item_is_found_by_index():
    data = {"rewards": [{"use": "a"}, {"use": "b"}]}
    assert after(data, "rewards[1].weight=2")["rewards"][1] == {"use": "b", "weight": 2}
    assert error_of(data, "rewards[2].weight=2") == "--set rewards[2].weight: rewards has 2 items; they count from 0."


def test_a_list_without_a_selector_says_how_to_name_the_item():
    data = {"filters": [{"use": "spread"}]}
    assert (
        error_of(data, "filters.metric=b") == "--set filters.metric: filters is a list. Name the item: filters[spread]."
    )
    assert "Name the item: rewards[name]." in error_of({}, "rewards.weight=2")


def test_a_selector_on_what_is_no_list_is_refused():
    assert error_of({}, "loss[clip].high=1").startswith("--set loss[clip].high: loss is not a list of components.")
    assert "Did you mean 'filters'?" in error_of({}, "filter[spread].metric=1")


def test_a_key_below_a_value_is_refused():
    assert error_of({"optim": {"lr": 1}}, "optim.lr.x=2") == "--set optim.lr.x: optim.lr has no keys."


def test_an_item_takes_only_a_mapping():
    assert "takes a mapping of options" in error_of({}, "filters[spread]=3")


def test_a_whole_list_is_replaced():
    assert after({"filters": [{"use": "a"}]}, "filters=[b, {use: c}]") == {"filters": ["b", {"use": "c"}]}
