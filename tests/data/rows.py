"""A row of every layout, and what it means."""


def say(*said, dialect="role"):
    """Messages of alternating roles: user, assistant, user, ..."""
    roles = {"role": ("user", "assistant"), "from": ("human", "gpt")}[dialect]
    text = {"role": "content", "from": "value"}[dialect]
    return [{dialect: roles[i % 2], text: content} for i, content in enumerate(said)]


def reply(content, dialect="role"):
    return say("", content, dialect=dialect)[1]


def parts(content):
    return [{"type": "text", "text": content}]


HH = "\n\nHuman: 2+2? \n\nAssistant: Let me see.\n\nHuman: Well?\n\nAssistant: "

# layout -> a row of it, its prompt, its responses best first
ROWS = {
    "preference": (dict(prompt="2+2=", chosen="4", rejected="5"), "2+2=", ["4", "5"]),
    "preference-implicit": (
        dict(chosen="The sky is blue.", rejected="The sky is blank.", source="a"),
        "The sky is",
        [" blue.", " blank."],
    ),
    "preference-implicit-chat": (
        dict(chosen=say("2+2?", "4"), rejected=say("2+2?", "5")),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "ultrafeedback-binarized": (
        dict(
            prompt="2+2?", prompt_id="x", messages=say("2+2?", "4"),
            chosen=say("2+2?", "4"), rejected=say("2+2?", "5"), score_chosen=8.5, score_rejected=3,
        ),
        [("user", "2+2?")],
        [("4", 8.5), ("5", 3.0)],
    ),
    "hh": (
        dict(chosen=HH + "4", rejected=HH + "5"),
        [("user", "2+2? "), ("assistant", "Let me see."), ("user", "Well?")],
        ["4", "5"],
    ),
    "messages-pair": (
        dict(
            chosen_messages=say(parts("2+2?"), parts("4")),
            rejected_messages=say(parts("2+2?"), parts("5")),
        ),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "openai": (
        dict(
            input={"messages": say("2+2?"), "tools": []},
            preferred_output=[reply("4")], non_preferred_output=[reply("5")],
        ),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "sharegpt-ranking": (
        dict(
            conversations=say("2+2?", dialect="from"), system="Be brief.",
            chosen=reply("4", "from"), rejected=reply("5", "from"),
        ),
        [("system", "Be brief."), ("user", "2+2?")],
        ["4", "5"],
    ),
    "alpaca-ranking": (
        dict(instruction="Add.", input="2+2", output="4", chosen="4", rejected="5"),
        [("user", "Add.\n2+2")],
        ["4", "5"],
    ),
    "swift": (dict(messages=say("2+2?", "4"), rejected_response="5"), [("user", "2+2?")], ["4", "5"]),
    "swift-messages": (
        dict(messages=say("2+2?", "4"), rejected_messages=say("2+2?", "5")),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "ultrafeedback": (
        dict(
            source="flan", instruction="2+2?", models=["a", "b"],
            completions=[{"response": r, "overall_score": s} for r, s in (("5", 2), ("4", 9.0), ("four", 9))],
        ),
        [("user", "2+2?")],
        [("4", 9.0), ("four", 9.0), ("5", 2.0)],
    ),
    "nectar": (
        dict(
            prompt="\n\nHuman: 2+2?\n\nAssistant: ", source=["x"],
            answers=[{"answer": "5", "model": "m", "rank": 2.0}, {"answer": "4", "model": "n", "rank": 1.0}],
        ),
        [("user", "2+2?")],
        [("4", -1.0), ("5", -2.0)],
    ),
    "nemo-rl": (
        dict(
            context=say("2+2?"),
            completions=[{"rank": 1, "completion": [reply("5")]}, {"rank": 0, "completion": [reply("4")]}],
        ),
        [("user", "2+2?")],
        [("4", 0.0), ("5", -1.0)],
    ),
    "distilabel": (
        dict(instruction="2+2?", generations=["5", "4"], ratings=[1, 5], model_names=["a", "b"]),
        [("user", "2+2?")],
        [("4", 5.0), ("5", 1.0)],
    ),
    "distilabel-orca": (
        dict(system="", input="2+2?", chosen="4", rejected="5", chosen_score=9, rejected_score=8, status="unchanged"),
        [("user", "2+2?")],
        [("4", 9.0), ("5", 8.0)],
    ),
    "argilla": (
        dict(
            instruction="2+2?", chosen_response="4", rejected_response="5",
            chosen_avg_rating=5.0, rejected_avg_rating=2.0,
        ),
        [("user", "2+2?")],
        [("4", 5.0), ("5", 2.0)],
    ),
    "orca": (
        dict(system="Be brief.", question="2+2?", chosen="4", rejected="5"),
        [("system", "Be brief."), ("user", "2+2?")],
        ["4", "5"],
    ),
    "stackexchange": (dict(question="2+2?", response_j="4", response_k="5"), [("user", "2+2?")], ["4", "5"]),
    "shp": (
        dict(history="2+2?", human_ref_A="5", human_ref_B="4", labels=0, score_A=2, score_B=9),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "pku-saferlhf": (
        dict(prompt="2+2?", response_0="5", response_1="4", better_response_id=1, safer_response_id=0),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "pku-saferlhf-safer": (
        dict(prompt="2+2?", response_0="5", response_1="4", safer_response_id=1),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "helpsteer3": (
        dict(domain="code", context=say("2+2?"), response1="4", response2="5", overall_preference=-2),
        [("user", "2+2?")],
        [("4", 2.0), ("5", 0.0)],
    ),
    "halos-pairs": (
        dict(prompt=say("2+2?"), output_A=[reply("5")], output_B=[reply("4")], label=0, type="pairwise_feedback"),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "arena": (
        dict(model_a="x", winner="model_b", conversation_a=say("2+2?", "5"), conversation_b=say("2+2?", "4")),
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "auto-j": (
        {"scenario": "math", "label": 1, "prompt": "2+2?", "response 1": "5", "response 2": "4"},
        [("user", "2+2?")],
        ["4", "5"],
    ),
    "llmbar": (dict(input="2+2?", output_1="5", output_2="4", label=2), [("user", "2+2?")], ["4", "5"]),
    "pandalm": (
        dict(
            idx=0, cmp_key="bloom-7b_llama-7b", instruction="Add.", input="2+2", response1="5", response2="4",
            annotator1=2, annotator2=0, annotator3=2,
        ),
        [("user", "Add.\n2+2")],
        ["4", "5"],
    ),
    "alpaca-eval": (
        dict(instruction="2+2?", output_1="5", generator_1="m", output_2="4", annotator="n", preference=1.75),
        [("user", "2+2?")],
        [("4", 0.75), ("5", 0.25)],
    ),
    "kto": (dict(prompt="2+2=", completion="5", label=False), "2+2=", [("5", 0.0)]),
    "kto-messages": (dict(messages=say("2+2?", "4"), label=True), [("user", "2+2?")], [("4", 1.0)]),
    "kto-sharegpt": (
        dict(conversations=say("2+2?", "5", dialect="from"), kto_tag=False),
        [("user", "2+2?")],
        [("5", 0.0)],
    ),
    "kto-alpaca": (dict(instruction="2+2?", input="", output="4", kto_tag=True), [("user", "2+2?")], [("4", 1.0)]),
    "halos": (
        dict(prompt=say("2+2?"), output=[reply("5")], label=0, reward=-3.0, type="binary_feedback"),
        [("user", "2+2?")],
        [("5", 0.0)],
    ),
    "prompt-completion": (dict(prompt="2+2=", completion="4"), "2+2=", [("4", None)]),
    "messages": (
        dict(messages=say("Hi", "Hello", "2+2?", "4")),
        [("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?")],
        [("4", None)],
    ),
    "sharegpt": (
        dict(conversations=[{"from": "system", "value": "Be brief."}, *say("2+2?", "4", dialect="from")]),
        [("system", "Be brief."), ("user", "2+2?")],
        [("4", None)],
    ),
    "alpaca": (
        dict(instruction="And 2+2?", input=None, output="4", system="S", history=[["1+1?", "2"]], text="all of it"),
        [("system", "S"), ("user", "1+1?"), ("assistant", "2"), ("user", "And 2+2?")],
        [("4", None)],
    ),
    "text": (dict(text="2+2=4"), "", [("2+2=4", None)]),
}  # fmt: skip
