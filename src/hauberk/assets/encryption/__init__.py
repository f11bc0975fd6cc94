"""Models encrypted at rest: sealed in chunks, opened in memory, for keys, passphrases, recipients and key services."""

from hauberk.assets.encryption.access import Description as Description
from hauberk.assets.encryption.access import describe as describe
from hauberk.assets.encryption.access import is_encrypted as is_encrypted
from hauberk.assets.encryption.keys import KeyService as KeyService
from hauberk.assets.encryption.keys import Passphrase as Passphrase
from hauberk.assets.encryption.keys import RawKey as RawKey
from hauberk.assets.encryption.keys import key_from_environment as key_from_environment
from hauberk.assets.encryption.keys import key_from_file as key_from_file
from hauberk.assets.encryption.reader import EncryptedReader as EncryptedReader
from hauberk.assets.encryption.recipients import Identity as Identity
from hauberk.assets.encryption.recipients import Recipient as Recipient
from hauberk.assets.encryption.writer import EncryptedWriter as EncryptedWriter
from hauberk.assets.encryption.writer import encrypt_file as encrypt_file
from hauberk.assets.encryption.writer import encrypt_stream as encrypt_stream
