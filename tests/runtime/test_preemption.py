import signal

from infoprune_jax.runtime import preemption


def test_is_heard_once_and_by_who_listens():
  assert not preemption.ask()
  with preemption.listening():
    assert not preemption.is_asked()
    assert preemption.ask()
    assert preemption.is_asked()
    assert not preemption.ask()  # The second ends the process at once.
  assert not preemption.is_asked()


def test_the_signal_that_asked_gives_the_exit_code(monkeypatch):
  monkeypatch.setattr(preemption, '_number', preemption._number)
  assert preemption.Stopped('saved').number == signal.SIGTERM
  with preemption.listening():
    assert preemption.ask(signal.SIGINT)
    assert not preemption.ask(signal.SIGTERM)
  assert preemption.Stopped('saved').number == signal.SIGINT
