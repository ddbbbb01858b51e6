"""A TFDS dataset and SeqIO tasks, for tests of sources that need TensorFlow."""

import numpy as np

from infoprune_jax.corpus import quiet_tensorflow

NUM_SHARDS = 2
TASKS = """
import functools, os
import seqio
import tensorflow as tf

FOLDER = os.path.dirname(__file__)
FEATURES = {'targets': seqio.Feature(seqio.ByteVocabulary(), add_eos=True)}
TOKENIZE = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
IDS_ALONE = [
  functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
  seqio.preprocessors.append_eos,
]

def rename(dataset):
  return dataset.map(lambda row: {**row, 'targets': row['text']})

def of_lines(dataset):
  return dataset.map(lambda line: {'targets': line})

def numbers(split, shuffle_files):
  rows = tf.data.Dataset.range(5)
  return rows.map(lambda n: {'text': 'n' + tf.strings.as_string(n)})

@seqio.utils.map_over_dataset(num_seeds=1)
def noise(row, seed):
  drawn = tf.random.stateless_uniform([], seed, 0, 10**6, tf.int32)
  return {'targets': row['targets'] + ' ' + tf.strings.as_string(drawn)}

def broken(dataset, sequence_length):
  return dataset.take(sequence_length['targets'])

def lines(name='lines'):
  return seqio.TextLineDataSource({'train': f'{FOLDER}/{name}*.txt'})

def prepared(name):
  return seqio.TfdsDataSource(name, tfds_data_dir=FOLDER)

for name, source, preprocessors in (
  ('told', prepared('told_text:1.0.0'), [rename, *TOKENIZE]),
  ('unprepared', prepared('mnist:3.0.1'), [rename, *TOKENIZE]),
  ('lines', lines(), [of_lines, *TOKENIZE]),
  ('lines_of_ids', lines(), [of_lines, *IDS_ALONE]),
  ('copies', lines('copies'), [of_lines, *TOKENIZE]),
  ('no_file', lines('none'), [of_lines, *TOKENIZE]),
  ('noisy', lines(), [of_lines, noise, *TOKENIZE]),
  ('broken', lines(), [of_lines, broken, *TOKENIZE]),
  ('function', seqio.FunctionDataSource(numbers, ['train']),
   [rename, *TOKENIZE]),
):
  seqio.TaskRegistry.add(name, source, FEATURES, preprocessors=preprocessors)
seqio.MixtureRegistry.add('mixed', ['told', 'lines', 'function'], 1.0)
"""


def make_dataset(folder) -> None:
  """Prepares a TFDS dataset of 40 and 10 examples, in two shards each."""
  tfds = quiet_tensorflow.import_tfds()

  def examples(split: str, count: int):
    for n in range(count):
      data = b'\xff' if (split, n) == ('validation', 3) else b'raw'
      meta = {'url': f'{split}/{n}', 'n': n}
      row = {'text': f'{split} {n} Zürich', 'data': data, 'meta': meta}
      yield n, {**row, 'pixels': np.zeros((2, 2, 3), np.uint8)}

  with tfds.core.registered.skip_registration():  # Reading needs no such code.

    class ToldText(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('1.0.0')
      url_infos = None  # Else it is looked for next to this file.

      def _info(self):
        features = {
          'text': tfds.features.Text(),
          'data': tfds.features.Tensor(shape=(), dtype=np.str_),
          'meta': {'url': tfds.features.Text(), 'n': np.int64},
          'pixels': tfds.features.Image(shape=(2, 2, 3)),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

      def _split_generators(self, dl_manager):
        counts = {'train': 40, 'validation': 10}
        return {name: examples(name, n) for name, n in counts.items()}

      def _generate_examples(self):
        raise AssertionError('the generators are given')

  tfds.disable_progress_bar()
  sharding = tfds.download.DownloadConfig(num_shards=NUM_SHARDS)
  ToldText(data_dir=folder).download_and_prepare(download_config=sharding)
