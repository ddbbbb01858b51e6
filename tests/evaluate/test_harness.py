"""Our models in lm-evaluation-harness, beside its own of transformers."""

import json
import os
import pathlib
import random

import numpy as np
import pytest

os.environ['HF_HUB_OFFLINE'] = '1'  # Before anything reads it.
lm_eval = pytest.importorskip('lm_eval')
pytest.importorskip('torch')
pytest.importorskip('transformers')
pytest.importorskip('accelerate')

import made_llama
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from infoprune_jax import load_model
from infoprune_jax.config.validation import UserError
from infoprune_jax.evaluate.harness import InfopruneLM

MAX_LENGTH = 64
WORDS = (
  *('the', 'a', 'cat', 'dog', 'sat', 'on', 'mat', 'ran', 'over', 'under'),
  *('tree', 'house', 'and', 'then', 'blue', 'green', 'small', 'large', 'was'),
)


def sentence(rng: random.Random, most: int) -> str:
  return ' '.join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
  return [
    Instance(request_type=kind, doc={}, arguments=args, idx=number)
    for number, args in enumerate(arguments)
  ]


@pytest.fixture(scope='module', params=[True, False], ids=['bos', 'no-bos'])
def both(request, tmp_path_factory) -> tuple[InfopruneLM, HFLM]:
  """Ours and theirs, with and without BOS before a context."""
  folder = tmp_path_factory.mktemp('llama')
  rng = random.Random(0)
  texts = [sentence(rng, 20) for _ in range(100)]
  tokenizer = made_llama.tokenizer(folder, texts)
  model = made_llama.network_of(len(tokenizer), MAX_LENGTH)
  model.save_pretrained(folder)
  ours = load_model(str(folder), max_length=MAX_LENGTH, adds_bos=request.param)
  theirs = HFLM(
    pretrained=model,
    tokenizer=tokenizer,
    backend='causal',
    batch_size=8,
    max_length=MAX_LENGTH,
    add_bos_token=request.param,
  )
  return InfopruneLM(ours), theirs


def pairs(seed: int = 1) -> list[tuple[str, str]]:
  """Multiple choice, last words, whole sentences, and what is too long."""
  rng = random.Random(seed)
  made = []
  for _ in range(8):
    context = sentence(rng, 12)
    made += [(context, ' ' + sentence(rng, 6)) for _ in range(4)]
    made.append((context + ' ', rng.choice(WORDS)))
    made.append(('', sentence(rng, 12)))
  made.append((sentence(rng, 10) + '\n', 'Answer: ' + sentence(rng, 3)))
  made.append((' '.join([sentence(rng, 9) for _ in range(40)]), ' cat sat'))
  return made


def test_log_probabilities_are_those_of_theirs(both):
  ours, theirs = both
  asked = requests('loglikelihood', pairs())
  found = ours.loglikelihood(asked)
  expected = theirs.loglikelihood(asked, disable_tqdm=True)
  np.testing.assert_allclose(
    [nll for nll, _ in found], [nll for nll, _ in expected], rtol=1e-4
  )
  assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_what_the_model_would_say_is_greedy(both):
  """And one token of it changed is not."""
  ours, theirs = both
  contexts = [context for context, _ in pairs() if context.strip()][:20]
  said = ours.generate_until(
    requests('generate_until', [(c, {'max_gen_toks': 3}) for c in contexts])
  )
  asked = requests(
    'loglikelihood',
    [
      pair
      for context, text in zip(contexts, said, strict=True)
      if text
      for pair in ((context, text), (context, text + ' the'))
    ],
  )
  found = ours.loglikelihood(asked)
  expected = theirs.loglikelihood(asked, disable_tqdm=True)
  assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
  assert {greedy for _, greedy in found} == {True, False}


def test_rolling_cuts_windows_as_theirs(both):
  """Theirs counts BOS as text where its tokenizer adds BOS: not there."""
  ours, theirs = both
  if theirs.add_bos_token:
    theirs.add_bos_token = False
  rng = random.Random(2)
  texts = [' '.join(sentence(rng, 9) for _ in range(n)) for n in (1, 5, 30, 60)]
  asked = requests('loglikelihood_rolling', [(text,) for text in texts])
  found = ours.loglikelihood_rolling(asked)
  expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
  theirs.add_bos_token = ours.language_model.adds_bos
  assert max(len(ours.tok_encode(text)) for text in texts) > 2 * MAX_LENGTH
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_generates_what_theirs_does(both):
  """20 prompts of 32 new tokens; one is cut at the left, some are stopped."""
  ours, theirs = both
  rng = random.Random(3)
  prompts = [sentence(rng, 20) for _ in range(19)]
  prompts.append(' '.join(sentence(rng, 9) for _ in range(30)))
  plain = {'until': [], 'max_gen_toks': 32, 'do_sample': False}
  asked = requests('generate_until', [(p, plain) for p in prompts])
  expected = theirs.generate_until(asked, disable_tqdm=True)
  found = ours.generate_until(asked)
  assert found == expected
  stop = expected[0][len(expected[0]) // 2 :][:2]
  stopped = {'until': [stop], 'max_gen_toks': 32}
  asked = requests('generate_until', [(p, stopped) for p in prompts])
  found = ours.generate_until(asked)
  assert found == theirs.generate_until(asked, disable_tqdm=True)
  assert found[0] == expected[0].partition(stop)[0]


def test_sampling_is_refused_by_name(both):
  ours, _ = both
  for asked, name in (
    ({'do_sample': True, 'temperature': 0.7}, 'do_sample'),
    ({'top_p': 0.9}, 'top_p'),
    ({'num_beams': 4}, 'num_beams'),
  ):
    with pytest.raises(UserError, match=f'asks for {name}'):
      ours.generate_until(requests('generate_until', [('a', asked)]))
  with pytest.raises(UserError, match='no room for a prompt'):
    ours.generate_until(
      requests('generate_until', [('a', {'max_gen_toks': MAX_LENGTH})])
    )


def task_files(folder: pathlib.Path) -> None:
  """Local tasks: four choices, and the last word."""
  rng = random.Random(4)
  (folder / 'choices.jsonl').write_text(
    ''.join(
      json.dumps(
        {
          'query': sentence(rng, 9),
          'choices': [sentence(rng, 5) for _ in range(4)],
          'gold': rng.randrange(4),
        }
      )
      + '\n'
      for _ in range(20)
    )
  )
  (folder / 'choices.yaml').write_text(
    f"""
task: made_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
  )


def test_local_tasks_give_what_they_give_with_theirs(
  both, tmp_path, monkeypatch
):
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  task_files(tmp_path)
  manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
  found, expected = (
    lm_eval.simple_evaluate(
      model, tasks=['made_choices'], task_manager=manager, bootstrap_iters=0
    )
    for model in both
  )
  assert found['results'] == expected['results']
  for ours, theirs in zip(
    found['samples']['made_choices'],
    expected['samples']['made_choices'],
    strict=True,
  ):
    assert ours['acc'] == theirs['acc']
