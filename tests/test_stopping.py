import signal

from infoprune_jax import stopping


def test_is_heard_once_and_by_who_listens():
  assert not stopping.ask()
  with stopping.listening():
    assert not stopping.is_asked()
    assert stopping.ask()
    assert stopping.is_asked()
    assert not stopping.ask()  # The second ends the process at once.
  assert not stopping.is_asked()


def test_the_signal_that_asked_gives_the_exit_code(monkeypatch):
  monkeypatch.setattr(stopping, '_number', stopping._number)
  assert stopping.Stopped('saved').number == signal.SIGTERM
  with stopping.listening():
    assert stopping.ask(signal.SIGINT)
    assert not stopping.ask(signal.SIGTERM)
  assert stopping.Stopped('saved').number == signal.SIGINT
