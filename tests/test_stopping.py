from infoprune_jax import stopping


def test_is_heard_once_and_by_who_listens():
  assert not stopping.ask()
  with stopping.listening():
    assert not stopping.is_asked()
    assert stopping.ask()
    assert stopping.is_asked()
    assert not stopping.ask()  # The second ends the process at once.
  assert not stopping.is_asked()
