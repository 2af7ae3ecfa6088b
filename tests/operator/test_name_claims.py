"""The oldest service has a name."""

from quire_operator.name_claims import NameClaims, claim_of, decide_claims


def document(name: str, created: int, model: object = None, uid: str = "u") -> dict:
    meta = {"namespace": "n", "name": name, "creationTimestamp": f"2026-01-01T00:00:{created:02d}Z", "uid": uid}
    return {"metadata": meta, "spec": {"model": model if model is not None else {}}}


def test_the_oldest_wins_and_the_problem_names_the_field_and_the_winner() -> None:
    older, younger = document("a", 1, {"name": "x"}), document("b", 2, {"name": "y", "aliases": ["x"]})

    claims = decide_claims(claim_of(item) for item in (younger, older))

    assert claims.owners == {"x": ("n", "a")}
    (problem,) = claims.conflicts["n", "b"]
    assert problem.path == "spec.model.aliases"
    assert "n/a" in problem.message


def test_of_the_same_second_the_lower_uid_wins() -> None:
    claims = decide_claims(
        [claim_of(document("a", 1, {"name": "x"}, "2")), claim_of(document("b", 1, {"name": "x"}, "1"))]
    )

    assert claims.owners["x"] == ("n", "b")


def test_a_loser_claims_nothing_and_gets_all_when_the_winner_goes() -> None:
    known = NameClaims()
    for item in (document("a", 1, {"name": "x"}), document("b", 2, {"name": "x", "aliases": ["y"]}), document("y", 3)):
        known.put(item)
    assert known.decided().owners == {"x": ("n", "a"), "y": ("n", "y")}

    assert known.drop(("n", "a"))
    assert not known.drop(("n", "a"))

    assert known.decided().owners == {"x": ("n", "b"), "y": ("n", "b")}
    assert list(known.decided().conflicts) == [("n", "y")]


def test_a_spec_that_is_wrong_still_has_the_names_that_can_be_read() -> None:
    assert claim_of(document("a", 1, "nonsense")).names == ("a",)
    assert claim_of(document("a", 1, {"name": 5, "aliases": ["b", 7, "b"]})).names == ("a", "b")
